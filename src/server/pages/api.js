// The server's API, with the key if there is one.
import { recall, remember } from "./common.js";

const PATIENCE_MS = 8000;

let key = recall("sessionStorage", "api-key") ?? "";

/** Takes a key; it is kept in this tab only. */
export function useKey(text) {
  key = text;
  remember("sessionStorage", "api-key", text);
}

export const hasKey = () => key !== "";

/** What the server refuses, with its words; status 0 if it did not answer. */
export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

export async function ask(path, method = "GET") {
  // A header holds no other characters, and no key has them.
  const headers = /^[\x20-\x7e]+$/.test(key) ? { Authorization: `Bearer ${key}` } : {};
  let answer, body;
  try {
    answer = await fetch(path, { method, headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    body = answer.status === 204 ? null : await answer.json();
  } catch {
    throw new Refused(answer?.status ?? 0, "unreachable", "The server does not answer.");
  }
  if (!answer.ok) throw new Refused(answer.status, body?.error?.code, body?.error?.message ?? `The server answered ${answer.status}.`);
  return body;
}

export const roomPath = (room) => `/api/rooms/${encodeURIComponent(room)}`;

/** A page of a list: `after` is a cursor of the page before. */
export function page(path, limit, after) {
  return ask(`${path}?limit=${limit}${after ? `&after=${encodeURIComponent(after)}` : ""}`);
}
