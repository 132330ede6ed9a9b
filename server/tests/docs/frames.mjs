// Conversations over WebSockets, as the pages have them:
//
//   ada: connects to /ws/lobby?presence=diff&user=ada
//   ada: is refused 401 bad_token              instead: the handshake's status and error code
//   ada: → {"type":"message","payload":"hi"}   ada sends a frame
//   ada: ← {"type":"message", …}               the next frame that ada receives
//   ada: ← close 4001 kicked                   the server closes, with this code and reason
//   ada: closes 1000                           ada closes; without a number with no code
//   ada: breaks                                ada's TCP connection ends
//   $ curl …                                   a command; what it prints follows in the next lines
//
// A line that begins with two spaces continues the one before. Clients stay connected until the end of
// the page. Frames that no line names wait for the client's next ←; a refusal that no line names is a
// failure.
import { once } from "node:events";
import WebSocket from "ws";
import { sameText, sameValue } from "./compare.mjs";
import { within } from "./place.mjs";

/** Longer than the default grace, after which a leave arrives. */
const FRAME_TIMEOUT = 20_000;

class Client {
  #arrived = [];
  #waiting = null;
  /** The answer to a handshake that was refused: `STATUS CODE`. */
  refusal = null;

  constructor(url, line) {
    this.line = line;
    this.socket = new WebSocket(url);
    this.socket.on("message", (data) => this.#arrive({ frame: String(data) }));
    this.socket.on("close", (code, reason) => this.#arrive({ close: `${code} ${reason}`.trim() }));
    this.socket.on("error", () => {}); // "close" follows
  }

  #arrive(event) {
    this.#arrived.push(event);
    this.#waiting?.();
  }

  /** Waits for the end of the handshake. */
  async opened() {
    const response = await within(FRAME_TIMEOUT, "the handshake", Promise.race([
      once(this.socket, "open").then(() => null),
      once(this.socket, "unexpected-response").then(([, response]) => response),
    ]));
    if (!response) return;
    let body = "";
    for await (const chunk of response) body += chunk;
    const code = body.match(/"code":"(\w+)"/)?.[1] ?? body;
    this.refusal = `${response.statusCode} ${code}`;
  }

  async next() {
    while (!this.#arrived.length) {
      await within(FRAME_TIMEOUT, "a frame", new Promise((resolve) => (this.#waiting = resolve)));
    }
    return this.#arrived.shift();
  }
}

/** The clients of a page. */
export class Clients {
  #named = new Map();
  #all = [];

  get(name) {
    const client = this.#named.get(name);
    if (!client) throw new Error(`${name} has not connected`);
    return client;
  }

  /** Connects a client; from `line` on the name is this one's. */
  async connect(name, url, line) {
    const client = new Client(url, line);
    this.#named.set(name, client);
    this.#all.push(client);
    await client.opened();
    return client;
  }

  end() {
    for (const { socket } of this.#all) socket.terminate();
  }
}

/** The lines of a conversation, with those that continue them: `{ text, line }`. */
function join(text, first) {
  const lines = [];
  for (const [at, line] of text.split("\n").entries()) {
    if (line.startsWith("  ") && lines.length) lines.at(-1).text += ` ${line.trim()}`;
    else if (line.trim()) lines.push({ text: line, line: first + at });
  }
  return lines;
}

/** Holds a conversation with the server of the page; `clients` are those of the blocks before, too. */
export async function converse(step, place, clients) {
  const base = `ws://${await place.localize("127.0.0.1:8080")}`;
  const lines = join(step.text, step.line + 1);
  /** The clients of this conversation; another one may use their names for others. */
  const connected = new Map();
  /** Those whose refusal no line has expected, by name. */
  const refused = new Map();
  for (let at = 0; at < lines.length; at++) {
    const { text, line } = lines[at];
    try {
      if (text.startsWith("$ ")) {
        const output = [];
        while (at + 1 < lines.length && !/^(\$ |\w+: )/.test(lines[at + 1].text)) output.push(lines[++at].text);
        await place.expect(text.slice(2), output.join("\n"));
        continue;
      }
      const [, name, what] = text.match(/^(\w+): (.*)$/) ?? [];
      if (!name) throw new Error("not a line of a conversation");
      await act(name, what, line);
    } catch (error) {
      const what = text.startsWith("$ ") ? "" : `: ${text}`;
      throw new Error(`line ${line}${what}\n${error.message}`);
    }
  }
  for (const [name, { line, refusal }] of refused) throw new Error(`line ${line}: ${name} was refused with ${refusal}`);

  async function act(name, what, line) {
    const path = what.match(/^connects to (\S+)$/)?.[1];
    if (path) {
      if (connected.get(name)?.socket.readyState === WebSocket.OPEN) {
        throw new Error(`${name} is connected; give this client another name`);
      }
      if (refused.has(name)) throw new Error(`${name} was refused before with ${refused.get(name).refusal}`);
      const client = await clients.connect(name, base + await place.localize(path), line);
      connected.set(name, client);
      if (client.refusal) refused.set(name, client);
      return;
    }
    const client = clients.get(name);
    const refusal = what.match(/^is refused (\d+ \S+)$/)?.[1];
    if (refusal) {
      if (!client.refusal) throw new Error("it was let in");
      if (client.refusal !== refusal) throw new Error(`actual: ${client.refusal}`);
      refused.delete(name);
      return;
    }
    if (client.refusal) throw new Error(`the handshake was refused with ${client.refusal}`);
    if (what.startsWith("→ ")) return client.socket.send(await place.localize(what.slice(2)));
    if (what === "breaks") return client.socket.terminate();
    const closes = what.match(/^closes(?: (\d+))?$/);
    if (closes) {
      if (client.socket.readyState !== WebSocket.OPEN) throw new Error("it is closed already");
      const closed = once(client.socket, "close");
      client.socket.close(...(closes[1] ? [Number(closes[1])] : []));
      await within(FRAME_TIMEOUT, "the server's close frame", closed);
      return;
    }
    const expected = what.match(/^← (.*)$/)?.[1];
    if (!expected) throw new Error("not an action of a client");
    const close = expected.match(/^close (.*)$/)?.[1];
    const wanted = close === undefined && parse(expected);
    const event = await client.next();
    const isClose = event.frame === undefined;
    const actual = isClose ? `close ${event.close}` : place.globalize(event.frame);
    const same = isClose === (close !== undefined) && (isClose ? sameText(close, event.close) : sameFrame(wanted, actual));
    if (!same) throw new Error(`actual: ${actual}`);
  }
}

function parse(expected) {
  try {
    return JSON.parse(expected);
  } catch (error) {
    throw new Error(`the expected frame is not JSON: ${error.message}`);
  }
}

function sameFrame(wanted, actual) {
  try {
    return sameValue(wanted, JSON.parse(actual));
  } catch {
    return false; // not JSON
  }
}
