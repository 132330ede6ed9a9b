// Random histories: what a client folds from its frames is what the server says over HTTP.
import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import { test } from "node:test";
import { Presence } from "phoenix";
import { answer, connect, presences, raw, someRoom, until } from "./support.mjs";

const SEED = Number(process.env.SEED ?? randomInt(2 ** 31));
const HISTORIES = 12;
const QUIET_POINTS = 4;
/** Histories stop to begin after this. */
const BUDGET = 25_000;

/** Numbers from 0 up to and without 1, the same for the same seed (mulberry32). */
function numbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let n = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    n = (n + Math.imul(n ^ (n >>> 7), 61 | n)) ^ n;
    return ((n ^ (n >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Folds the frames of a room as `Presence` does, and checks that none is missing. */
function fold(client, room) {
  const folded = { state: {}, version: null, waiting: [] };
  client.socket.onMessage(({ topic, event, payload }) => {
    if (topic !== room) return;
    if (event === "presence_state") folded.state = Presence.syncState(folded.state, payload);
    if (event !== "presence_diff") return;
    if (folded.version !== null) assert.equal(payload.since, folded.version, "no gap and no duplicate");
    assert.ok(payload.v > payload.since);
    folded.version = payload.v;
    folded.state = Presence.syncDiff(folded.state, payload);
  });
  return folded;
}

/** A state in one line: who is there, with what attached; `refs` says whether as which presence. */
function line(state, refs) {
  return Object.entries(state).flatMap(([key, { metas }]) => metas.map(({ phx_ref, phx_ref_prev, online_at, ...info }) =>
    JSON.stringify([key, refs && phx_ref, online_at, info]))).sort().join("\n");
}

/** The same of what the REST API lists. */
function listed(all) {
  return all.map(({ user, channel_name, info, joined_at }) =>
    JSON.stringify([user ?? `anonymous:${channel_name}`, false, String(Math.floor(Date.parse(joined_at) / 1000)), info])).sort().join("\n");
}

const user = (id) => (id === null ? "" : `&user=${id}`);

/** Clients of three kinds; each operation settles when the server has taken it. */
const kinds = {
  channel(t, room, id) {
    let client = null;
    let info = { n: 0 };
    let channel = null;
    return {
      async join(n) {
        info = { n };
        client ??= connect(t, { params: id === null ? {} : { user: id } });
        // A channel on a topic that is joined already leaves the old one first.
        channel = client.socket.channel(room, () => ({ info }));
        assert.equal((await answer(channel.join())).status, "ok");
      },
      async update(n) { await this.join(n); },
      async leave() {
        const leaving = channel;
        channel = null;
        if (leaving) await answer(leaving.leave());
      },
      async drop() {
        if (!client) return;
        const before = client.opened;
        await until("an open socket", () => client.socket.isConnected());
        client.socket.conn.terminate();
        await until("it is back", () => client.opened > before && (!channel || channel.state === "joined"));
      },
    };
  },
  frames(t, room, id) {
    let socket = null;
    let ref = 0;
    const ask = async (event, payload) => {
      const mine = `r${++ref}`;
      const joinRef = event === "phx_join" ? mine : null;
      const asked = socket;
      asked.send(joinRef, mine, room, event, payload);
      await asked.next(`the answer to ${event}`, (frame) => frame[1] === mine && frame[3] === "phx_reply");
    };
    return {
      async join(n) {
        socket ??= await raw(t, `/socket/websocket?vsn=2.0.0${user(id)}`);
        await ask("phx_join", { info: { n } });
      },
      async update(n) { await this.join(n); },
      async leave() { if (socket) await ask("phx_leave", {}); },
      async drop() {
        const dropped = socket;
        socket = null;
        dropped?.ws.terminate();
      },
    };
  },
  json(t, room, id) {
    let socket = null;
    const session = `&session=${Math.random()}`;
    return {
      async join(n) {
        const info = encodeURIComponent(JSON.stringify({ n }));
        socket = await raw(t, `/ws/${encodeURIComponent(room)}?presence=diff${user(id)}&info=${info}${session}`);
      },
      async update(n) {
        if (!socket) return this.join(n);
        socket.say({ type: "update", info: { n, json: true } });
      },
      async leave() {
        const left = socket;
        socket = null;
        left?.ws.close(1000);
      },
      async drop() {
        const dropped = socket;
        socket = null;
        dropped?.ws.terminate();
      },
    };
  },
};

test(`histories of many clients fold to what the server lists (SEED=${SEED})`, async (t) => {
  const random = numbers(SEED);
  const one = (list) => list[Math.floor(random() * list.length)];
  const end = Date.now() + BUDGET;
  let histories = 0;
  for (; histories < HISTORIES && Date.now() < end; histories += 1) {
    const room = someRoom();
    const observer = connect(t, { params: { user: "observer" } });
    const folded = fold(observer, room);
    const channel = observer.socket.channel(room);
    const presence = new Presence(channel);
    assert.equal((await answer(channel.join())).status, "ok");
    const clients = [];
    for (let n = 0; n < 7; n += 1) {
      clients.push({ ...one(Object.values(kinds))(t, room, one(["ada", "bob", null])), busy: Promise.resolve() });
    }
    let n = 0;
    for (let quiet = 0; quiet < QUIET_POINTS; quiet += 1) {
      for (let step = 0; step < 20; step += 1) {
        const client = one(clients);
        const what = one(["join", "join", "update", "update", "leave", "drop"]);
        n += 1;
        const info = n;
        client.busy = client.busy.then(() => client[what](info));
        // Now and then all are waited for, so that windows end in different places.
        if (random() < 0.2) await Promise.all(clients.map((one) => one.busy));
      }
      await Promise.all(clients.map((one) => one.busy));
      let both;
      try {
        await until("the fold is what is listed", async () => {
          both = [line(folded.state, false), listed(await presences(room))];
          return both[0] === both[1];
        }, 8000);
      } catch {
        assert.fail(`folded:\n${both[0]}\nlisted:\n${both[1]}`);
      }
      // Who comes now gets the same presences, by the same references.
      const late = await raw(t, "/socket/websocket?vsn=2.0.0&user=late");
      late.send("1", "1", room, "phx_join", {});
      const { late: itself, ...state } = (await late.next("its state", (frame) => frame[3] === "presence_state"))[4];
      assert.equal(itself.metas.length, 1);
      // A client that came back at once is the same line without its reference: its change may still be on the way.
      const known = () => {
        const { late: _, ...others } = folded.state;
        return line(others, true);
      };
      await until("the same references", () => known() === line(state, true), 8000).catch(() => {});
      assert.equal(known(), line(state, true));
      late.ws.close(1000);
      await until("it is gone", () => !presence.state.late && !folded.state.late);
      assert.equal(line(presence.state, true), line(folded.state, true), "Presence itself folds the same");
    }
    for (const client of clients) await client.leave();
    observer.socket.disconnect();
  }
  t.diagnostic(`${histories} histories`);
  assert.ok(histories > 0);
});
