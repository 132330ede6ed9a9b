// The runner itself: what is right passes, and what is wrong is reported.
import assert from "node:assert/strict";
import { test } from "node:test";
import { runPage } from "./blocks.mjs";

/** What is wrong with a page that consists of these blocks, by kind. */
async function failures(...blocks) {
  const found = [];
  let count = 0;
  await runPage(blocks.join("\n\n"), (step, error) => {
    count += 1;
    if (error) found.push(`${step.kind}: ${error.message}`);
  });
  assert.notEqual(count, 0, "nothing was run");
  return found;
}

const block = (info, ...lines) => ["```" + info, ...lines, "```"].join("\n");

test("shell sessions", async () => {
  assert.deepEqual(await failures(block("console",
    "$ echo hello; echo 'at 2026-01-01T00:00:00Z'",
    "hello",
    "at 1999-12-31T23:59:59.5Z",
    "$ seq 1 9",
    "1",
    "…",
    "9",
    "$ curl -s http://127.0.0.1:8080/api/rooms",
    '{"next": null,',
    ' "rooms": []}',
    "$ cd /; pwd",
    "$ pwd",
    "/",
  )), []);
  const wrong = await failures(
    block("console", "$ echo hello", "goodbye"),
    block("console", "$ seq 1 9", "1", "…", "8"),
    block("console", "$ false"),
    block("console", "$ curl -s http://127.0.0.1:8080/api/rooms", '{"next": 1, "rooms": []}'),
    block("console", "$ sudo true"),
  );
  assert.equal(wrong.length, 5, wrong.join("\n"));
});

test("conversations", async () => {
  assert.deepEqual(await failures(block("text frames",
    "ada: connects to /ws/lobby?presence=diff&user=ada",
    'ada: ← {"type":"presence_state","payload":{"channel_name":"lobby","version":1,"epoch":"0123456789abcdef",',
    '  "members":[{"id":"ada","info":{},"connections":1}],"lurkers":0}}',
    'ada: → {"type":"message","payload":1}',
    'ada: ← {"type":"message","payload":1,"from":{"id":"ada","connection":"…"}}',
    "$ curl -s http://127.0.0.1:8080/api/users/ada",
    '{"id":"ada","rooms":[{"channel_name":"lobby","connections":1}]}',
    "eve: connects to /ws/lobby?presence=x",
    "eve: is refused 400 bad_presence",
    "ada: breaks",
  )), []);
  const connects = "ada: connects to /ws/lobby?presence=count&user=ada";
  const wrong = await failures(
    block("text frames", connects, 'ada: ← {"type":"presence_count"}'),
    block("text frames", connects, "ada: is refused 401 bad_token"),
    block("text frames", connects, "ada: sings"),
    block("text frames", "bob: → 1"),
    block("text frames", connects, 'ada: ← {"type":"presence_count","payload":"…"}', "$ false"),
  );
  assert.equal(wrong.length, 5, wrong.join("\n"));
});

test("scripts and SQL", async () => {
  const socket = 'const s = new WebSocket("ws://127.0.0.1:8080/ws/x?user=ada"); s.onmessage = ({ data }) => console.log(JSON.parse(data).type);';
  assert.deepEqual(await failures(
    block("js", socket), block("text output", "presence"),
    block("js", 'if (1 + 1 !== 2) throw new Error("no")'),
    block("sql", "SELECT * FROM presences"),
  ), []);
  const wrong = await failures(
    block("js", socket), block("text output", "absence"),
    block("js", "process.exit(3)"),
    block("sql", "SELECT * FROM ghosts"),
  );
  assert.equal(wrong.length, 3, wrong.join("\n"));
});

test("the server's flags, and none", async () => {
  assert.deepEqual(await failures(
    "<!-- server: --api-key k -->",
    block("console", "$ curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/api/rooms", "401"),
    "<!-- server: none -->",
    block("console", "$ presence --bind 127.0.0.1:8081 --database sqlite::memory: &", "$ curl -s http://127.0.0.1:8081/healthz", '{"status":"ok"}'),
    block("console", "$ curl -s http://127.0.0.1:8080/healthz || echo nobody", "nobody"),
  ), []);
});
