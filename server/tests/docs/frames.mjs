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
// the page. Frames that no line names wait for the client's next ←.
import { once } from "node:events";
import WebSocket from "ws";
import { sameOutput, sameText, sameValue } from "./compare.mjs";
import { within } from "./place.mjs";

const FRAME_TIMEOUT = 10_000;

class Client {
  #arrived = [];
  #waiting = null;

  constructor(url) {
    this.socket = new WebSocket(url);
    this.socket.on("message", (data) => this.#arrive({ frame: String(data) }));
    this.socket.on("close", (code, reason) => this.#arrive({ close: `${code} ${reason}`.trim() }));
    this.socket.on("error", () => {}); // "close" follows
  }

  #arrive(event) {
    this.#arrived.push(event);
    this.#waiting?.();
  }

  async next() {
    while (!this.#arrived.length) {
      await within(FRAME_TIMEOUT, "a frame", new Promise((resolve) => (this.#waiting = resolve)));
    }
    return this.#arrived.shift();
  }
}

/** The lines of a conversation, with those that continue them. */
function join(text) {
  const lines = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("  ") && lines.length) lines[lines.length - 1] += ` ${line.trim()}`;
    else if (line.trim()) lines.push(line);
  }
  return lines;
}

/** Holds a conversation with the server of the page; `clients` are those of the blocks before. */
export async function converse(text, place, clients) {
  const base = `ws://${await place.localize("127.0.0.1:8080")}`;
  const lines = join(text);
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at];
    if (line.startsWith("$ ")) {
      const output = [];
      while (at + 1 < lines.length && !/^(\$ |\w+: )/.test(lines[at + 1])) output.push(lines[++at]);
      const { output: actual, code, errors } = await place.run(line.slice(2));
      if (code !== 0) throw new Error(`${line}\nexit code ${code}\n${errors}`);
      if (output.length && !sameOutput(output.join("\n"), actual)) {
        throw new Error(`${line}\nexpected: ${output.join("\n")}\nactual:   ${actual.trim()}`);
      }
      continue;
    }
    const [, name, what] = line.match(/^(\w+): (.*)$/) ?? [];
    if (!name) throw new Error(`not a line of a conversation: ${line}`);
    try {
      await act(name, what);
    } catch (error) {
      throw new Error(`${line}\n${error.message}`);
    }
  }

  async function act(name, what) {
    const path = what.match(/^connects to (\S+)$/)?.[1];
    if (path) {
      const client = new Client(base + path);
      clients.set(name, client);
      const answer = await within(FRAME_TIMEOUT, "the handshake", Promise.race([
        once(client.socket, "open").then(() => null),
        once(client.socket, "unexpected-response").then(([, response]) => response),
      ]));
      client.refusal = answer;
      return;
    }
    const client = clients.get(name);
    if (!client) throw new Error(`${name} has not connected`);
    const refusal = what.match(/^is refused (\d+) (\S+)$/);
    if (refusal) {
      if (!client.refusal) throw new Error("it was let in");
      let body = "";
      for await (const chunk of client.refusal) body += chunk;
      const actual = `${client.refusal.statusCode} ${JSON.parse(body).error.code}`;
      if (actual !== `${refusal[1]} ${refusal[2]}`) throw new Error(`it was refused with ${actual}`);
      return;
    }
    if (client.refusal) throw new Error(`the handshake was refused with ${client.refusal.statusCode}`);
    if (what.startsWith("→ ")) return client.socket.send(what.slice(2));
    if (what === "breaks") return client.socket.terminate();
    const closes = what.match(/^closes(?: (\d+))?$/);
    if (closes) return closes[1] ? client.socket.close(Number(closes[1])) : client.socket.close();
    const close = what.match(/^← close (.*)$/)?.[1];
    if (close) {
      const event = await client.next();
      if (event.close === undefined || !sameText(close, event.close)) {
        throw new Error(`actual: ${event.close === undefined ? event.frame : `close ${event.close}`}`);
      }
      return;
    }
    const expected = what.match(/^← (.*)$/)?.[1];
    if (!expected) throw new Error("not an action of a client");
    const event = await client.next();
    if (event.frame === undefined) throw new Error(`actual: close ${event.close}`);
    let wanted;
    try {
      wanted = JSON.parse(expected);
    } catch (error) {
      throw new Error(`the expected frame is not JSON: ${error.message}`);
    }
    if (!sameValue(wanted, JSON.parse(event.frame))) throw new Error(`actual: ${event.frame}`);
  }
}
