// Channels, as an unmodified client of Phoenix knows them.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Socket } from "phoenix";
import { answer, BASE, connect, enter, join, keys, presences, raw, sees, serve, someRoom, told, token, until } from "./support.mjs";

const SECRET = "a secret of at least thirty-two bytes, for tests";

test("a client connects with params, joins, pushes and is answered", async (t) => {
  const room = someRoom();
  const ada = await enter(t, room, "ada");
  const bob = await enter(t, room, "bob");
  const got = { ada: [], bob: [] };
  ada.channel.on("shout", (payload) => got.ada.push(payload));
  bob.channel.on("shout", (payload) => got.bob.push(payload));
  const payload = { text: "hé \u0000", n: [1, { a: null }] };
  assert.deepEqual(await answer(ada.channel.push("shout", payload)), { status: "ok", response: {} });
  await until("everybody has it, the sender too", () => got.ada.length && got.bob.length);
  assert.deepEqual(got, { ada: [payload], bob: [payload] });
  for (const event of ["phx_forged", "phx_reply", "presence_diff", "presence_state"]) {
    assert.equal((await answer(ada.channel.push(event, { joins: {}, leaves: {} }))).status, "error", event);
  }
  assert.deepEqual(keys(bob), ["ada", "bob"]);
});

test("a heartbeat is answered, again and again", async (t) => {
  const client = connect(t, { params: { user: "ada" }, heartbeatIntervalMs: 50 });
  const beats = () => client.frames.filter((frame) => frame.topic === "phoenix" && frame.event === "phx_reply");
  await until("five answers", () => beats().length >= 5);
  assert.equal(client.opened, 1, "it never thought the server dead");
  assert.deepEqual(beats()[0].payload, { status: "ok", response: {} });
  const rtt = await new Promise((resolve) => assert.ok(client.socket.ping(resolve)));
  assert.ok(rtt >= 0);
});

test("another version and a bad token are refused with 403", async (t) => {
  const server = await serve(t, ["--secret", SECRET]);
  const good = token("--user", "ada", "--secret", SECRET);
  for (const [what, params, options] of [
    ["version 1", { token: good }, { vsn: "1.0.0" }],
    ["a token of nobody", { token: `${good}x` }, {}],
    ["no token", {}, {}],
    ["an authToken of nobody", {}, { authToken: "nonsense" }],
  ]) {
    const client = connect(t, { base: server.url, params, ...options });
    assert.match(await until(what, () => client.errors[0]), / 403$/, what);
    client.socket.disconnect();
  }
  const query = new URLSearchParams({ token: good });
  const without = await fetch(`${server.url}/socket/websocket?${query}`);
  assert.equal(without.status, 403, "no version");
});

test("an authToken says who it is, in the subprotocol, and which rooms are open", async (t) => {
  const server = await serve(t, ["--secret", SECRET]);
  const authToken = token("--user", "ada", "--room", "team:*", "--info", '{"role":"boss"}', "--secret", SECRET);
  const client = connect(t, { base: server.url, authToken });
  await until("the connection", () => client.opened);
  assert.equal(client.socket.conn.protocol, "phoenix");
  const ada = await join(client, "team:one", { info: { role: "forged", mood: "fine" } });
  await sees(ada, ["ada"]);
  assert.equal(ada.presence.state.ada.metas[0].role, "boss");
  assert.equal(ada.presence.state.ada.metas[0].mood, "fine");
  const elsewhere = client.socket.channel("secret room");
  assert.deepEqual(await answer(elsewhere.join()), { status: "error", response: { reason: "unauthorized" } });
  elsewhere.leave();
  // The same in the query, with the other alphabet of base64 in the subprotocol.
  const query = await raw(t, "/socket/websocket?vsn=2.0.0", {
    base: server.url,
    protocols: ["phoenix", `base64url.bearer.phx.${Buffer.from(authToken).toString("base64url")}`],
  });
  assert.equal(query.ws.protocol, "phoenix");
});

test("several rooms on one socket, leaving and joining again", async (t) => {
  const [one, two] = [someRoom(), someRoom()];
  const witness = await enter(t, one, "witness");
  const client = connect(t, { params: { user: "ada" } });
  const first = await join(client, one);
  const second = await join(client, two);
  await sees(witness, ["ada", "witness"]);
  assert.deepEqual(keys(second), ["ada"]);

  const frames = client.frames.length;
  assert.equal((await answer(first.channel.leave())).status, "ok");
  await until("the channel is closed", () => first.closed);
  await sees(witness, ["witness"]);
  const last = client.frames.slice(frames).filter((frame) => frame.topic === one);
  assert.equal(last.length > 0 && last[0].event, "phx_reply");
  assert.equal((await presences(two)).length, 1, "the other room is as it was");
  const pushed = await answer(second.channel.push("still", {}));
  assert.equal(pushed.status, "ok");

  const again = await join(client, one, { info: { n: 2 } });
  await sees(again, ["ada", "witness"]);
  await sees(witness, ["ada", "witness"]);
  assert.deepEqual(told(witness, "ada").map((one) => one.kind), ["join", "leave", "join"]);
});

test("a topic that is no room is unmatched", async (t) => {
  const client = connect(t, { params: { user: "ada" } });
  for (const topic of ["", "x".repeat(256), "a\u0007b", "phoenix"]) {
    const channel = client.socket.channel(topic);
    const answered = await answer(channel.join());
    assert.deepEqual(answered, { status: "error", response: { reason: "unmatched topic" } }, topic);
    channel.leave();
  }
});

test("clients of both dialects share a room, both ways", async (t) => {
  const room = someRoom();
  const route = `/ws/${encodeURIComponent(room)}`;
  const ada = await enter(t, room, "ada", { info: { n: 1 } });
  const json = await raw(t, `${route}?user=bob&presence=diff`);
  await sees(ada, ["ada", "bob"]);
  const state = await json.next("the state", (frame) => frame.type === "presence_state");
  assert.deepEqual(state.payload.members.find((one) => one.id === "ada").info, { n: 1 });
  const id = Object.fromEntries((await presences(room)).map((one) => [one.user, one.channel_name]));

  const got = [];
  ada.channel.on("message", (payload) => got.push(payload));
  json.say({ type: "message", payload: ["from", "bob"] });
  await until("it reaches the channel", () => got.length);
  assert.deepEqual(got, [{ payload: ["from", "bob"], from: { id: "bob", connection: id.bob } }]);

  ada.channel.push("shout", { loud: true });
  const shout = await json.next("it reaches the socket", (frame) => frame.event === "shout");
  const from = { id: "ada", connection: id.ada };
  assert.deepEqual(shout, { type: "message", event: "shout", payload: { loud: true }, from });

  const posted = await fetch(`${BASE}/api/rooms/${encodeURIComponent(room)}/messages`, {
    method: "POST", headers: { "content-type": "application/json" }, body: '{"n":1}',
  });
  assert.deepEqual(await posted.json(), { recipients: 2 });
  await until("the server's reaches the channel", () => got.length === 2);
  assert.deepEqual(got[1], { payload: { n: 1 }, from: null });

  json.say({ type: "update", info: { mood: "fine" } });
  await until("the update", () => ada.presence.state.bob.metas[0].mood === "fine");
  json.ws.close(1000);
  await sees(ada, ["ada"]);
  assert.equal(told(ada, "bob").at(-1).metas[0].cause, "left");
});

test("the constructor's default is the address that the client appends to", () => {
  const socket = new Socket("ws://127.0.0.1:1/socket", { transport: class {} });
  assert.match(socket.endPointURL(), /\/socket\/websocket\?vsn=2\.0\.0$/);
});
