// A worker that tells its page when to send a heartbeat.
setInterval(() => postMessage(0), 20_000);
