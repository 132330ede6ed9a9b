// What the tests share: servers of their own, clients that remember what happened, bounded waits.
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import * as files from "node:path";
import { Presence, Socket } from "phoenix";
import WebSocket from "ws";

/** A server in development mode with `--grace 2s`. */
export const BASE = (process.env.PRESENCE_URL ?? "http://127.0.0.1:8080").replace(/\/$/, "");
const BIN = process.env.PRESENCE_BIN ?? "presence";
/** How long a condition may take to come true. */
const PATIENCE = 20_000;

export const someRoom = () => `room é:${randomUUID()}`;
export const path = (room) => `/api/rooms/${encodeURIComponent(room)}`;

/** Waits until the answer is not falsy, and gives it. */
export async function until(what, ask, bound = PATIENCE) {
  const end = Date.now() + bound;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    assert.ok(Date.now() < end, `it did not come to be: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

function environment() {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("PRESENCE_")));
}

/** A place for a database, gone after the test. */
export function place(t) {
  const directory = mkdtempSync(files.join(tmpdir(), "presence-"));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** A server of the test's own, ended with it. */
export async function serve(t, flags = [], { directory = place(t), port = 0 } = {}) {
  const args = ["serve", "--bind", `127.0.0.1:${port}`, "--workers", "2",
    "--database", `sqlite://${directory}/presence.db`, ...flags];
  const child = spawn(BIN, args, { env: environment(), stdio: ["ignore", "ignore", "pipe"] });
  const ended = once(child, "exit");
  let log = "";
  child.stderr.setEncoding("utf8").on("data", (text) => (log += text));
  const kill = async () => {
    child.kill("SIGKILL");
    await ended;
  };
  t.after(kill);
  const url = await until("the server listens", () => {
    assert.equal(child.exitCode, null, log);
    return log.match(/listening on (http:\/\/[0-9.:]+)/)?.[1];
  });
  const term = async () => {
    child.kill("SIGTERM");
    assert.deepEqual(await ended, [0, null], log);
  };
  return { url, port: Number(new URL(url).port), directory, kill, term };
}

/** A token as the binary signs it. */
export const token = (...args) =>
  execFileSync(BIN, ["token", ...args], { encoding: "utf8", env: environment() }).trim();

export async function get(route, base = BASE) {
  const answer = await fetch(base + route);
  return answer.status === 404 ? null : answer.json();
}

/** All presences of a room by the REST API. */
export async function presences(room, base = BASE) {
  const all = [];
  let page = await get(`${path(room)}/presences?limit=1000`, base);
  while (page) {
    all.push(...page.presences);
    page = page.next && (await get(`${path(room)}/presences?limit=1000&after=${page.next}`, base));
  }
  return all;
}

/** A socket of the `phoenix` package; `frames` are all it got, `ends` its close events. */
export function connect(t, { base = BASE, params = {}, ...options } = {}) {
  const socket = new Socket(`${base.replace("http", "ws")}/socket`, { transport: WebSocket, params, ...options });
  const client = { socket, frames: [], ends: [], errors: [], opened: 0 };
  socket.onMessage((frame) => client.frames.push(frame));
  socket.onClose((event) => client.ends.push(event.code));
  socket.onError((error) => client.errors.push(error.message));
  socket.onOpen(() => (client.opened += 1));
  t.after(() => socket.disconnect());
  socket.connect();
  return client;
}

/** Settles as the push does. */
export const answer = (push) => new Promise((resolve) => {
  for (const status of ["ok", "error", "timeout"]) {
    push.receive(status, (response) => resolve({ status, response }));
  }
});

/** Joins a room and waits for its state; `log` has what `Presence` said, in order. */
export async function join(client, room, params = {}) {
  const channel = client.socket.channel(room, params);
  const presence = new Presence(channel);
  const member = { client, room, channel, presence, log: [], syncs: 0, closed: 0 };
  const note = (kind) => (key, current, changed) =>
    member.log.push({ kind, key, left: current?.metas.length, metas: structuredClone(changed.metas) });
  presence.onJoin(note("join"));
  presence.onLeave(note("leave"));
  presence.onSync(() => (member.syncs += 1));
  channel.onClose(() => (member.closed += 1));
  assert.deepEqual(await answer(channel.join()), { status: "ok", response: {} });
  await until("the state", () => member.syncs > 0);
  return member;
}

/** A client of a user in a room. */
export async function enter(t, room, user, { info, session, ...options } = {}) {
  const params = { ...(user && { user }), ...(session && { session }) };
  return join(connect(t, { params, ...options }), room, info && { info });
}

export const keys = (member) => Object.keys(member.presence.state).sort();
export const metas = (member, key) => member.presence.state[key]?.metas ?? [];
/** What a member was told of a key. */
export const told = (member, key) => member.log.filter((one) => one.key === key);

export async function sees(member, wanted) {
  const sorted = [...wanted].sort().join();
  await until(`exactly ${sorted}`, () => keys(member).join() === sorted);
}

/** What the member was told of the causes of leaves of a key. */
export const causes = (member, key) => member.client.frames
  .filter((frame) => frame.topic === member.room && frame.event === "presence_diff")
  .flatMap((frame) => frame.payload.leaves[key]?.metas ?? []).map((meta) => meta.cause);

/** A WebSocket of frames, each parsed. */
export async function raw(t, route, { base = BASE, protocols, ...options } = {}) {
  const ws = new WebSocket(base.replace("http", "ws") + route, protocols, options);
  const client = { ws, frames: [], code: null };
  ws.on("message", (text) => client.frames.push(JSON.parse(text)));
  ws.on("close", (code) => (client.code = code));
  ws.on("error", () => {});
  t.after(() => ws.terminate());
  await once(ws, "open");
  client.send = (...frame) => ws.send(JSON.stringify(frame));
  client.say = (frame) => ws.send(JSON.stringify(frame));
  client.next = (what, wanted) => until(what, () => client.frames.find(wanted));
  return client;
}
