// Whether an output is the one on the page. What differs from run to run is compared by its kind: ids,
// times, epochs. "…" stands for anything.
import { isDeepStrictEqual } from "node:util";

const VARYING = [
  [/\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b|\b[0-9a-f]{32}\b/g, "<id>"],
  [/\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)?/g, "<time>"],
  [/\b[0-9a-f]{16}\b/g, "<epoch>"],
];
const ANY = "…";

const generalize = (text) => VARYING.reduce((text, [pattern, kind]) => text.replace(pattern, kind), text);
const escape = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

function parseJson(text) {
  try {
    return { value: JSON.parse(text) };
  } catch {
    return null;
  }
}

/** Whether the value is as expected, where "…" in a text matches anything, and alone any value. */
export function sameValue(expected, actual) {
  if (expected === ANY) return true;
  if (typeof expected === "string") return typeof actual === "string" && sameText(expected, actual);
  if (Array.isArray(expected)) {
    return Array.isArray(actual) && expected.length === actual.length
      && expected.every((value, at) => sameValue(value, actual[at]));
  }
  if (expected && typeof expected === "object") {
    if (!actual || typeof actual !== "object" || Array.isArray(actual)) return false;
    // A key may be an id, too.
    const keys = (value) => Object.keys(value).sort((a, b) => (generalize(a) < generalize(b) ? -1 : 1));
    const [wanted, found] = [keys(expected), keys(actual)];
    return isDeepStrictEqual(wanted.map(generalize), found.map(generalize))
      && wanted.every((key, at) => sameValue(expected[key], actual[found[at]]));
  }
  return expected === actual;
}

/** Whether a text is as expected: exactly, but for what varies, "…" within a line, and lines of "…" alone. */
export function sameText(expected, actual) {
  const split = (text) => generalize(text).split("\n").map((line) => line.trimEnd());
  const sameLine = (wanted, found) => new RegExp(`^${wanted.split(ANY).map(escape).join(".*")}$`).test(found);
  const same = (wanted, found) => {
    if (!wanted.length) return !found.length;
    if (wanted[0].trim() === ANY && wanted.length > 1) {
      return same(wanted.slice(1), found) || (found.length > 0 && same(wanted, found.slice(1)));
    }
    if (wanted[0].trim() === ANY) return true;
    return found.length > 0 && sameLine(wanted[0], found[0]) && same(wanted.slice(1), found.slice(1));
  };
  return same(split(expected), split(actual));
}

/** Whether the output of a command is as expected: by value, where both are JSON. */
export function sameOutput(expected, actual) {
  const [wanted, found] = [parseJson(expected), parseJson(actual)];
  return wanted && found ? sameValue(wanted.value, found.value) : sameText(expected.trim(), actual.trim());
}
