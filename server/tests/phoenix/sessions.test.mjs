// Sessions that survive reconnects, their grace, and every end of a connection.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import { BASE, causes, connect, enter, get, join, keys, metas, path, place, presences, raw, sees, serve, someRoom, told, until } from "./support.mjs";

const GRACE = 2000;
const never = () => 3_600_000;

test("who reconnects within the grace was never away", async (t) => {
  const room = someRoom();
  const witness = await enter(t, room, "witness");
  const json = await raw(t, `/ws/${encodeURIComponent(room)}?user=json&presence=diff`);
  await json.next("the state", (frame) => frame.type === "presence_state");
  const session = randomUUID();
  const ada = await enter(t, room, "ada", { session, info: { n: 1 } });
  await sees(witness, ["ada", "json", "witness"]);
  const [meta] = metas(witness, "ada");
  for (let n = 2; n <= 4; n += 1) {
    const syncs = ada.syncs;
    ada.client.socket.conn.terminate();
    await until("it is back", () => ada.client.opened === n && ada.syncs > syncs);
  }
  assert.deepEqual(ada.client.ends, [1006, 1006, 1006]);
  assert.deepEqual(told(ada, "ada").map((one) => one.kind), ["join"], "it sees nothing of it itself");
  // One that drops now and stays away ends after anything that could still end of ada.
  const last = await enter(t, room, "last", { session: randomUUID(), reconnectAfterMs: never });
  await sees(witness, ["ada", "json", "last", "witness"]);
  last.client.socket.conn.terminate();
  await sees(witness, ["ada", "json", "witness"]);
  assert.deepEqual(told(witness, "ada").map((one) => one.kind), ["join"]);
  assert.equal(metas(witness, "ada")[0].phx_ref, meta.phx_ref);
  const said = JSON.stringify(json.frames.filter((frame) => frame.type === "presence_diff"));
  assert.equal(said.split('"ada"').length - 1, 1, said);
  assert.deepEqual((await presences(room)).map((one) => one.state), ["live", "live", "live"]);
});

test("who does not come back leaves as disconnected, when the grace is over", async (t) => {
  const room = someRoom();
  const witness = await enter(t, room, "witness");
  const ada = await enter(t, room, "ada", { session: randomUUID(), reconnectAfterMs: never });
  await sees(witness, ["ada", "witness"]);
  const dropped = Date.now();
  ada.client.socket.conn.terminate();
  const fading = await until("it fades", async () =>
    (await presences(room)).find((one) => one.user === "ada" && one.state === "fading"));
  const explained = await get(`${path(room)}/presences/${fading.channel_name}/explain`);
  assert.ok(explained);
  await sees(witness, ["witness"]);
  const took = Date.now() - dropped;
  assert.ok(took >= GRACE - 50, `${took} ms`);
  assert.deepEqual(causes(witness, "ada"), ["disconnected"]);
});

test("without a session key there is no grace", async (t) => {
  const room = someRoom();
  const witness = await enter(t, room, "witness");
  const ada = await enter(t, room, "ada", { reconnectAfterMs: never });
  await sees(witness, ["ada", "witness"]);
  const dropped = Date.now();
  ada.client.socket.conn.terminate();
  await sees(witness, ["witness"]);
  assert.ok(Date.now() - dropped < GRACE / 2);
  assert.deepEqual(causes(witness, "ada"), ["disconnected"]);
});

test("a clean goodbye is no absence: it leaves at once, with 1000 or no code", async (t) => {
  const room = someRoom();
  const witness = await enter(t, room, "witness");
  for (const args of [[], [undefined, 1000, "bye"]]) {
    const ada = await enter(t, room, "ada", { session: randomUUID() });
    await sees(witness, ["ada", "witness"]);
    const said = Date.now();
    ada.client.socket.disconnect(...args);
    await sees(witness, ["witness"]);
    assert.ok(Date.now() - said < GRACE / 2);
  }
  assert.deepEqual(causes(witness, "ada"), ["left", "left"]);
});

test("a second connection of a session replaces the first, which comes not back", async (t) => {
  const room = someRoom();
  const witness = await enter(t, room, "witness");
  const session = randomUUID();
  const one = await enter(t, room, "ada", { session });
  await sees(witness, ["ada", "witness"]);
  const [meta] = metas(witness, "ada");
  const two = await enter(t, room, "ada", { session });
  await until("the first is closed", () => one.closed && one.client.ends.length);
  assert.deepEqual(one.client.ends, [1000]);
  assert.equal(one.client.frames.findLast((frame) => frame.topic === room).event, "phx_close");

  // The JSON socket is told so by its code, and what it still sends is for nobody.
  const route = `/ws/${encodeURIComponent(room)}?user=ada&session=${session}`;
  const json = await raw(t, route);
  await until("the second is closed", () => two.closed && two.client.ends.length);
  await json.next("the list", (frame) => frame.type === "presence");
  json.ws._socket.pause();
  const other = await raw(t, route);
  await other.next("the list", (frame) => frame.type === "presence");
  json.say({ type: "message", payload: "late" });
  json.say({ type: "update", info: { late: true } });
  json.ws._socket.resume();
  await until("the third is closed", () => json.code);
  assert.equal(json.code, 4002);

  const late = [];
  witness.channel.on("message", ({ payload }) => late.push(payload));
  other.say({ type: "message", payload: "in time" });
  await until("the message", () => late.length);
  assert.deepEqual(late, ["in time"]);
  assert.deepEqual(told(witness, "ada").map((one) => one.kind), ["join"]);
  assert.equal(metas(witness, "ada")[0].phx_ref, meta.phx_ref);
  assert.deepEqual([one, two].map((member) => member.channel.state), ["closed", "closed"]);
});

test("the old channel's late leave and pushes are ignored", async (t) => {
  const room = someRoom();
  const witness = await enter(t, room, "witness");
  const heard = [];
  witness.channel.on("late", (payload) => heard.push(payload));
  witness.channel.on("now", (payload) => heard.push(payload));
  const route = `/socket/websocket?vsn=2.0.0&user=ada&session=${randomUUID()}`;
  const old = await raw(t, route);
  old.send("1", "1", room, "phx_join", {});
  await old.next("its state", (frame) => frame[3] === "presence_state");
  old.ws._socket.pause();
  const young = await raw(t, route);
  young.send("1", "1", room, "phx_join", {});
  await young.next("its state", (frame) => frame[3] === "presence_state");
  old.send("1", "2", room, "late", {});
  old.send("1", "3", room, "phx_leave", {});
  old.send("9", "9", room, "phx_join", {});
  old.ws._socket.resume();
  await until("the old one is closed", () => old.code);
  assert.equal(old.code, 1000);
  assert.deepEqual(old.frames.findLast((frame) => frame[3] === "phx_close"), ["1", "1", room, "phx_close", {}]);
  young.send("1", "2", room, "now", {});
  await until("a message", () => heard.length);
  assert.equal(heard.length, 1);
  assert.deepEqual(told(witness, "ada").map((one) => one.kind), ["join"]);
});

test("another user with the same key is somebody else", async (t) => {
  const room = someRoom();
  const session = randomUUID();
  const ada = await enter(t, room, "ada", { session });
  const bob = await enter(t, room, "bob", { session });
  await sees(ada, ["ada", "bob"]);
  await sees(bob, ["ada", "bob"]);
  assert.equal(ada.closed, 0);
});

test("a kicked client does not come back", async (t) => {
  const room = someRoom();
  const witness = await enter(t, room, "witness");
  const ada = await enter(t, room, "ada", { session: randomUUID() });
  await sees(witness, ["ada", "witness"]);
  const { channel_name } = (await presences(room)).find((one) => one.user === "ada");
  const deleted = await fetch(`${BASE}/api/connections/${channel_name}`, { method: "DELETE" });
  assert.ok(deleted.ok);
  await until("it is closed", () => ada.closed && ada.client.ends.length);
  assert.deepEqual(ada.client.ends, [1000]);
  await sees(witness, ["witness"]);
  assert.deepEqual(causes(witness, "ada"), ["kicked"]);
  // Meanwhile somebody who only lost the line is back. A client may open its socket again (this version
  // of the package does so whatever the code), but it has no channel to join.
  const syncs = witness.syncs;
  witness.client.socket.conn.terminate();
  await until("the witness is back", () => witness.syncs > syncs);
  assert.equal(ada.channel.state, "closed");
  assert.deepEqual(keys(witness), ["witness"]);
});

test("a pruned client is closed with 4000, and comes back if it lives", async (t) => {
  const { url: base } = await serve(t, ["--max-age", "1s", "--prune-interval", "100ms", "--grace", "500ms"]);
  const room = someRoom();
  const witness = await enter(t, room, "witness", { base, heartbeatIntervalMs: 200 });
  const silent = await raw(t, "/socket/websocket?vsn=2.0.0&user=silent", { base });
  silent.send("1", "1", room, "phx_join", {});
  await sees(witness, ["silent", "witness"]);
  await until("it is closed", () => silent.code);
  assert.equal(silent.code, 4000);
  await sees(witness, ["witness"]);
  assert.deepEqual(causes(witness, "silent"), ["expired"]);

  const sleeper = await enter(t, room, "sleeper", { base });
  await until("it was closed, and is back", () => sleeper.client.opened === 2 && sleeper.syncs > 1);
  assert.deepEqual(sleeper.client.ends, [4000]);
  assert.equal(witness.client.opened, 1);
});

for (const [what, end, code] of [["is stopped", "term", 1001], ["crashes", "kill", 1006]]) {
  test(`when the server ${what} and starts again, clients come back by themselves`, async (t) => {
    const directory = place(t);
    const room = someRoom();
    const server = await serve(t, ["--grace", "2s"], { directory });
    const base = server.url;
    const all = [
      await enter(t, room, "ada", { base, info: { n: 1 } }),
      await enter(t, room, "bob", { base, session: randomUUID() }),
      await enter(t, room, "bob", { base }),
    ];
    await until("all are there", () => all.every((one) => metas(one, "bob").length === 2));
    await server[end]();
    await until("all were cut off", () => all.every((one) => one.client.ends.length > 0));
    assert.deepEqual(all.map((one) => one.client.ends[0]), [code, code, code]);
    assert.deepEqual(all.map((one) => one.closed), [0, 0, 0], "no channel is closed for good");
    await serve(t, ["--grace", "2s"], { directory, port: server.port });
    await until("all are there again", () => all.every((one) =>
      one.client.opened === 2 && keys(one).join() === "ada,bob" && metas(one, "bob").length === 2
      && metas(one, "ada").length === 1));
    const listed = await presences(room, base);
    assert.deepEqual(listed.map((one) => one.user).sort(), ["ada", "bob", "bob"]);
    const refs = (one) => Object.values(one.presence.state).flatMap((entry) => entry.metas.map((meta) => meta.phx_ref)).sort();
    await until("all know the same", () => all.every((one) => refs(one).join() === refs(all[0]).join()));
    assert.equal(metas(all[1], "ada")[0].n, 1);
  });
}
