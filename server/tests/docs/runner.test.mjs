// The runner itself: what is right passes, and what is wrong is reported.
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { runPage } from "./blocks.mjs";

/** What is wrong with a page that consists of these blocks: kind and message of each failure. */
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

/** Holds that each of these blocks alone is a failure that says this. */
async function reported(...cases) {
  for (const [wrong, says] of cases) {
    const found = await failures(...[wrong].flat());
    assert.equal(found.length, 1, `${[wrong].flat().join("\n")}\n${found.join("\n")}`);
    assert.match(found[0], says);
  }
}

test("a failure has the line of the page, the command, what was expected and what came", async () => {
  await reported(
    [block("console", "$ true", "", "$ echo a \\", "  b", "c"), /line 4\n\$ echo a [^]*expected:\nc\nactual:\na b/],
    [block("console", "$ echo why >&2; exit 3 | false"), /line 2[^]*exit code 1[^]*why/],
    [block("text frames", "ada: connects to /ws/a?user=ada&presence=count", 'ada: ← {"type":"x"}'),
      /line 3: ada: ← {"type":"x"}\nactual: {"type":"presence_count"/],
    [block("text frames", "ada: connects to /ws/a?user=ada", "$ echo a", "b"), /line 3\n\$ echo a\nexpected:\nb\nactual:\na/],
  );
});

test("a command that ends the shell, waits for input or is unfinished disturbs no other", async () => {
  const next = block("console", "$ echo next", "next");
  await reported(
    [[block("console", "$ exit 0"), next], /the shell has ended/],
    [[block("console", "$ echo 'x"), next], /unexpected EOF/],
    [[block("console", "$ test -n \"$(cat)\""), next], /exit code 1/],
    [block("text frames", "$ sudo true"), /held-by/],
  );
});

test("times, ids and epochs match any of their own kind", async () => {
  const prints = (actual, expected) => block("console", `$ echo '${actual}'`, expected);
  assert.deepEqual(await failures(
    prints("2026-01-01T00:00:00+02:00", "1999-12-31T23:59:59Z"),
    prints("2026-01-01 00:00:00.123", "1999-12-31 23:59:59"),
    prints("2026-01-01T00:00:00Z at 2026-01-01T00:00:00Z", "2026-…Z at 1999-12-31T23:59:59Z"),
    prints('"0123456789abcdef-4"', '"fedcba9876543210-4"'),
    prints('{"01a2261ac3617135a2c0be45c4d7bfd4": 1, "a": 2}', '{"a":2, "ffffffffffffffffffffffffffffffff":1}'),
    prints('{"user":"ada","at":"2026-01-01T00:00:00Z"}', '{"user":"…","at":"…"}'),
  ), []);
  await reported(
    [prints("2026-01-01 00:00:00", "2026-01-01T00:00:00Z"), /actual/],
    [prints('"0123456789abcdef-4"', '"0123456789abcdef-5"'), /actual/],
    [prints("0123456789abcdef", "01a2261ac3617135a2c0be45c4d7bfd4"), /actual/],
    [prints('{"a":1,"b":2}', '{"a":1}'), /actual/],
    [prints('{"a":1}', '{"a":1,"b":2}'), /actual/],
    [prints('{"a":1}', '{"a":"1"}'), /actual/],
    [prints('{"a":[1,2]}', '{"a":[2,1]}'), /actual/],
    [prints("a.c", "abc"), /actual/],
    [prints("abc", "a.c"), /actual/],
  );
});

test("closes, refusals and Phoenix", async () => {
  const connects = "ada: connects to /ws/lobby?user=ada&presence=none";
  const api = "http://127.0.0.1:8080/api";
  const kicked = `$ curl -sf -X DELETE ${api}/connections/$(curl -s ${api}/rooms/lobby/presences | jq -r '.presences[].channel_name')`;
  assert.deepEqual(await failures(
    block("text frames", connects, "ada: closes 1000", connects, "ada: closes", connects, "ada: breaks", connects),
    block("text frames", connects), // another ada, of another conversation
    block("text frames", "bob: connects to /ws/lobby?user=bob&presence=none", "bob: closes 1000"),
    "<!-- server: --grace 2s -->",
    block("text frames", connects, kicked, "ada: ← close 4001 kicked"),
    block("text frames",
      "eve: connects to /socket/websocket?vsn=2.0.0&user=eve",
      'eve: → ["1","1","lobby","phx_join",{}]',
      'eve: ← ["1","1","lobby","phx_reply",{"status":"ok","response":{}}]'),
  ), []);
  await reported(
    [block("text frames", "eve: connects to /ws/lobby?presence=x"), /line 2: eve was refused with 400 bad_presence/],
    [block("text frames", "eve: connects to /ws/lobby?presence=x", "eve: is refused 401 bad_token"), /actual: 400 bad_presence/],
    [block("text frames", connects, connects), /another name/],
    [block("text frames", connects, "ada: closes 1000", "ada: ← close 4001 kicked"), /actual: close 1000/],
    [block("text frames", connects, kicked, "ada: ← close 1000"), /actual: close 4001/],
    [block("text frames", connects, kicked, 'ada: ← "…"'), /actual: close 4001/],
  );
});

test("the lines of a script", async () => {
  const counts = block("js", "for (let i = 0; i < 9; i++) console.log(i); setInterval(() => {}, 1000);");
  assert.deepEqual(await failures(
    counts, block("text output", "0", "1"),
    counts, block("text output", "0", "…", "8"),
    block("js", "if (process.env.PRESENCE_ROOM || process.env.HOME !== process.cwd()) process.exit(1)"),
    block("js", 'import { Socket } from "phoenix"; new Socket("ws://127.0.0.1:8080/socket", {})'),
  ), []);
  await reported(
    [[counts, block("text output", "0", "2")], /expected:\n0\n2\nactual:\n0\n1/],
    [[block("js", "console.log(1); throw new Error('no')"), block("text output", "1", "2")], /Error: no/],
  );
});

test("ports of the page are free ones, and no other number is", async () => {
  const health = "$ curl -s http://127.0.0.1:8077/healthz";
  assert.deepEqual(await failures(
    "<!-- server: --bind 127.0.0.1:8077 -->",
    block("console", health, '{"status":"ok"}', "$ echo http://127.0.0.1:8077/", "http://127.0.0.1:8077/"),
    "<!-- server: none -->",
    block("console", "$ presence &", "$ curl -s http://127.0.0.1:8080/healthz", '{"status":"ok"}'),
    block("console", "$ echo 1-8012-2 x8013 1.8014 80155 | tr 0-9 a-j", "b-iabc-c xiabd b.iabe iabff"),
  ), []);
  await reported([block("console", "$ presence &"), /the server of the page listens there/]);
});

test("a server that does not start is a failure of its own", async () => {
  await reported(["<!-- server: --no-such-flag -->", /the server has ended[^]*no-such-flag/]);
});

test("what a page has started ends with it", async () => {
  const directory = mkdtempSync(join(tmpdir(), "presence-docs-"));
  try {
    const file = join(directory, "pids");
    assert.deepEqual(await failures(
      "<!-- server: none -->",
      block("console", `$ (trap '' TERM; echo $BASHPID >${file}; exec sleep 600) &`,
        "$ presence --bind 127.0.0.1:8081 &", `$ echo $! >>${file}`),
    ), []);
    for (const pid of readFileSync(file, "utf8").trim().split("\n")) {
      assert.throws(() => process.kill(Number(pid), 0), /ESRCH/, pid);
    }
  } finally {
    rmSync(directory, { recursive: true });
  }
});
