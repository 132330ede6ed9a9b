// A worker: tells its page when to give a sign of life.
setInterval(() => postMessage(0), 20_000);
