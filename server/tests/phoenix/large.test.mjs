// A room whose state is larger than `--max-list-size`, seen by `Presence`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { enter, keys, raw, sees, serve, someRoom, until } from "./support.mjs";

test("a client without a state has an empty one and counts until it fits; who has one keeps it", async (t) => {
  const { url: base } = await serve(t, ["--max-list-size", "2000"]);
  const room = someRoom();
  const info = encodeURIComponent(JSON.stringify({ x: "x".repeat(500) }));
  const path = (user) => `/ws/${encodeURIComponent(room)}?presence=none&user=${user}&info=${info}`;
  const leave = (member) => member.ws.close(1000);

  const ada = await enter(t, room, "ada", { base });
  const members = [];
  for (const user of ["m0", "m1", "m2", "m3"]) members.push(await raw(t, path(user), { base }));
  const all = ["ada", "m0", "m1", "m2", "m3"];
  await sees(ada, all);

  const bob = await enter(t, room, "bob", { base });
  const counts = () => bob.client.frames.filter(({ event }) => event === "presence_count").map(({ payload }) => payload);
  await until("a count", () => counts().length > 0);
  assert.deepEqual(keys(bob), []);
  assert.deepEqual({ ...counts()[0], version: 0 }, { users: 6, lurkers: 0, version: 0, truncated: true });
  await sees(ada, [...all, "bob"]);
  leave(members.pop());
  await until("the next count", () => counts().at(-1).users === 5);
  assert.deepEqual(keys(bob), []);
  assert.equal(bob.client.frames.filter(({ event }) => event === "presence_diff").length, 0);
  assert.equal(bob.syncs, 1, "of the empty state");

  leave(members.pop());
  leave(members.pop());
  for (const one of [ada, bob]) await sees(one, ["ada", "bob", "m0"]);
  members.push(await raw(t, path("m1"), { base }), await raw(t, path("m2"), { base }), await raw(t, path("m3"), { base }));
  for (const one of [ada, bob]) await sees(one, [...all, "bob"]);
  assert.equal(ada.client.frames.filter(({ event }) => event === "presence_state").length, 1);
});
