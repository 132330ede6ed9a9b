// Everybody joins at once.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Presence } from "phoenix";
import { answer, connect, someRoom, until } from "./support.mjs";

const MOST_FRAMES = 25;

for (const many of (process.env.STORM ?? "300").split(",").map(Number)) {
  test(`${many} clients that join at once each hear of all, in few frames`, async (t) => {
    const room = someRoom();
    const began = performance.now();
    const clients = await Promise.all(Array.from({ length: many }, async (_, n) => {
      const { socket } = connect(t, { params: { user: `user ${n}` } });
      const client = { frames: 0, state: null };
      socket.onMessage(({ event }) => (client.frames += event.startsWith("presence_") ? 1 : 0));
      const channel = socket.channel(room);
      client.presence = new Presence(channel);
      client.presence.onSync(() => (client.first ??= performance.now() - began));
      assert.equal((await answer(channel.join())).status, "ok");
      client.joined = performance.now() - began;
      return client;
    }));
    const joined = performance.now() - began;
    const complete = ({ presence }) => Object.keys(presence.state).length === many;
    await until("everybody has the full list", () => clients.every(complete), 60_000);
    const took = performance.now() - began;
    const frames = clients.map((client) => client.frames).sort((a, b) => a - b);
    const wait = Math.max(...clients.map((client) => client.first - client.joined));
    t.diagnostic(`${many} clients: joined after ${joined.toFixed()} ms, complete after ${took.toFixed()} ms, `
      + `presence frames per client ${frames[0]} to ${frames.at(-1)}, median ${frames[many >> 1]}, `
      + `longest wait for a state ${wait.toFixed()} ms`);
    for (const { presence } of clients) {
      assert.ok(presence.list().every(({ metas }) => metas.length === 1));
    }
    assert.ok(frames.at(-1) <= MOST_FRAMES, `${frames.at(-1)} frames`);
  });
}
