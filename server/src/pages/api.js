// The server's API, with the key if there is one.
import { at, recall, remember } from "./common.js";

const PATIENCE_MS = 8000;

let key = recall("sessionStorage", "api-key") ?? "";

/** Sets the key, which is stored for this tab only. */
export function useKey(text) {
  key = text;
  remember("sessionStorage", "api-key", text);
}

export const hasKey = () => key !== "";

/** An error answer of the server; status 0 if there was no answer. */
export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

// A header cannot contain other characters, so no key has them.
const headers = () => (/^[\x20-\x7e]+$/.test(key) ? { Authorization: `Bearer ${key}` } : {});
const gone = (answer) => new Refused(answer?.status ?? 0, "unreachable", "The server does not answer.");

function check(answer, body) {
  if (!answer.ok) throw new Refused(answer.status, body?.error?.code, body?.error?.message ?? `The server answered ${answer.status}.`);
}

export async function ask(path, method = "GET") {
  let answer, body;
  try {
    answer = await fetch(at(path), { method, headers: headers(), cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    body = answer.status === 204 ? null : await answer.json();
  } catch {
    throw gone(answer);
  }
  check(answer, body);
  return body;
}

/** Reads server-sent events until the stream fails. (An EventSource cannot send a key.) */
export async function listen(path, signal, take) {
  let answer;
  let silence = 0;
  const quiet = new AbortController();
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => quiet.abort(), PATIENCE_MS);
  };
  try {
    heard();
    answer = await fetch(at(path), { headers: headers(), cache: "no-store", signal: AbortSignal.any([signal, quiet.signal]) });
    if (!answer.ok) check(answer, await answer.json().catch(() => null));
    let rest = "";
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      heard();
      const events = (rest + part.value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const said = JSON.parse(event.replace(/^data: /, ""));
        try { take(said); } catch (bug) { reportError(bug); }
      }
    }
  } catch (problem) {
    if (problem instanceof Refused) throw problem;
  } finally {
    clearTimeout(silence);
  }
  throw gone();
}

export const roomPath = (room) => `api/rooms/${encodeURIComponent(room)}`;

/** A page of a list: `after` is a cursor of the page before. */
export function page(path, limit, after) {
  return ask(`${path}?limit=${limit}${after ? `&after=${encodeURIComponent(after)}` : ""}`);
}
