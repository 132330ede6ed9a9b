// `Presence` of the package: who comes, who goes, who changes.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import { answer, connect, enter, join, keys, metas, presences, sees, someRoom, told, until } from "./support.mjs";

test("users come and go, with a meta for each tab", async (t) => {
  const room = someRoom();
  const witness = await enter(t, room, "witness");
  const ada = await enter(t, room, "ada", { info: { device: "desk" } });
  await sees(witness, ["ada", "witness"]);
  const before = Date.now() / 1000;
  const [meta] = metas(witness, "ada");
  assert.deepEqual(Object.keys(meta).sort(), ["device", "online_at", "phx_ref"]);
  assert.ok(Math.abs(Number(meta.online_at) - before) < 60 && typeof meta.online_at === "string");

  const tab = await enter(t, room, "ada", { info: { device: "phone" } });
  await until("two tabs", () => metas(witness, "ada").length === 2);
  assert.deepEqual(metas(witness, "ada").map((one) => one.device).sort(), ["desk", "phone"]);
  assert.deepEqual(told(witness, "ada").map((one) => [one.kind, one.left]), [["join", undefined], ["join", 1]]);

  await until("all three know the same", () => [ada, tab].every((one) => metas(one, "ada").length === 2));
  for (const one of [ada, tab]) assert.deepEqual(byRef(one), byRef(witness));

  tab.client.socket.disconnect();
  await until("one tab", () => metas(witness, "ada").length === 1);
  assert.equal(metas(witness, "ada")[0].phx_ref, meta.phx_ref, "the other tab is as it was");
  ada.client.socket.disconnect();
  await sees(witness, ["witness"]);
  assert.deepEqual(told(witness, "ada").slice(2).map((one) => [one.kind, one.left, one.metas[0].cause]),
    [["leave", 1, "left"], ["leave", 0, "left"]]);
  const listed = witness.presence.list((id, { metas: [first, ...rest] }) => [id, first.phx_ref.length > 0, rest.length]);
  assert.deepEqual(listed, [["witness", true, 0]]);
});

const byRef = (member) => Object.entries(member.presence.state)
  .flatMap(([key, entry]) => entry.metas.map((meta) => `${key} ${meta.phx_ref} ${meta.device}`)).sort();

test("the key of somebody without a name is `anonymous:` and the connection's id", async (t) => {
  const room = someRoom();
  const one = await enter(t, room, null);
  const two = await enter(t, room, null, { info: { n: 2 } });
  await until("both", () => keys(one).length === 2 && keys(two).length === 2);
  assert.deepEqual(keys(one), (await presences(room)).map((presence) => `anonymous:${presence.channel_name}`).sort());
  assert.deepEqual(keys(one), keys(two));
});

test("a join with another info is an update: one diff, and never offline", async (t) => {
  const room = someRoom();
  const witness = await enter(t, room, "witness");
  const client = connect(t, { params: { user: "ada" }, rejoinAfterMs: () => 10 });
  let info = { n: 0 };
  const ada = await join(client, room, () => ({ info }));
  await sees(witness, ["ada", "witness"]);
  for (let n = 1; n <= 5; n += 1) {
    const before = metas(witness, "ada")[0];
    const seen = witness.client.frames.length;
    info = { n };
    // What the client does when a channel has crashed: it joins again, on the same socket.
    ada.channel.trigger("phx_error");
    await until("the update", () => metas(witness, "ada")[0]?.n === n && metas(ada, "ada")[0]?.n === n);
    const [after, ...rest] = metas(witness, "ada");
    assert.deepEqual(rest, []);
    assert.equal(after.phx_ref_prev, before.phx_ref);
    assert.notEqual(after.phx_ref, before.phx_ref);
    assert.equal(after.online_at, before.online_at);
    const diffs = witness.client.frames.slice(seen).filter((frame) => frame.event === "presence_diff");
    assert.equal(diffs.length, 1);
    assert.deepEqual(diffs[0].payload.leaves.ada.metas.map((meta) => meta.phx_ref), [before.phx_ref]);
    assert.deepEqual(diffs[0].payload.joins.ada.metas.map((meta) => meta.phx_ref), [after.phx_ref]);
  }
  for (const member of [witness, ada]) {
    assert.ok(told(member, "ada").every((one) => one.kind === "join" || one.left > 0));
    assert.equal(told(member, "ada").filter((one) => one.left === undefined).length, 1, "online once");
  }
});

test("a reconnect within the grace keeps the info, and the next join on the new socket is an update", async (t) => {
  const room = someRoom();
  const witness = await enter(t, room, "witness");
  let info = { n: 1 };
  const client = connect(t, { params: { user: "ada", session: randomUUID() } });
  const ada = await join(client, room, () => ({ info }));
  await sees(witness, ["ada", "witness"]);
  const [before] = metas(witness, "ada");
  info = { n: 2 };
  const syncs = ada.syncs;
  client.socket.conn.terminate();
  await until("it is back", () => client.opened === 2 && ada.syncs > syncs);
  assert.deepEqual(metas(ada, "ada"), [before]);
  assert.deepEqual(metas(witness, "ada"), [before]);
  ada.channel.trigger("phx_error");
  await until("the update", () => metas(witness, "ada")[0]?.n === 2);
  assert.equal(metas(witness, "ada")[0].phx_ref_prev, before.phx_ref);
  assert.ok(told(witness, "ada").every((one) => one.kind === "join" || one.left > 0));
});

test("a state comes after every join, also of a room where nothing changed", async (t) => {
  const room = someRoom();
  const raw = connect(t, { params: { user: "ada" } });
  for (let n = 1; n <= 4; n += 1) {
    const ada = await join(raw, room);
    assert.deepEqual(keys(ada), ["ada"]);
    const states = raw.frames.filter((frame) => frame.event === "presence_state");
    assert.equal(states.length, n);
    assert.equal(states.at(-1).join_ref, ada.channel.joinRef());
    assert.equal(states.at(-1).ref, null);
  }
  const channel = raw.socket.channels.at(-1);
  assert.equal((await answer(channel.leave())).status, "ok");
  await until("the room is empty", async () => (await presences(room)).length === 0);
});
