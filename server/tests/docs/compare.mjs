// Whether an output is the one on the page. What differs from run to run is compared by its kind: ids,
// times, epochs. "…" stands for anything.

const ID = "\\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\\b|\\b[0-9a-f]{32}\\b";
const TIME = "\\b\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d(?:\\.\\d+)?(?:Z|[+-]\\d\\d:\\d\\d)";
const SQL_TIME = "\\b\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d(?:\\.\\d+)?(?:\\+00(?::00)?)?";
const EPOCH = "\\b[0-9a-f]{16}\\b";
const KINDS = [ID, TIME, SQL_TIME, EPOCH];
const ANY = "…";
const VARYING = new RegExp([ANY, ...KINDS.map((kind) => `(${kind})`)].join("|"), "g");

const escape = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** What a line has to match: itself, with any id, time or epoch in the place of one. */
function pattern(line) {
  let source = "";
  let end = 0;
  for (const match of line.matchAll(VARYING)) {
    const kind = match.slice(1).findIndex((group) => group !== undefined);
    source += escape(line.slice(end, match.index)) + (kind < 0 ? ".*" : `(?:${KINDS[kind]})`);
    end = match.index + match[0].length;
  }
  return new RegExp(`^${source}${escape(line.slice(end))}$`);
}

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
    const left = new Set(Object.keys(actual));
    const keys = Object.keys(expected);
    const varying = keys.filter((key) => !left.has(key));
    return keys.every((key) => !left.delete(key) || sameValue(expected[key], actual[key]))
      // A key may be an id, too.
      && varying.every((key) => {
        const found = [...left].find((one) => sameText(key, one) && sameValue(expected[key], actual[one]));
        return found !== undefined && left.delete(found);
      })
      && left.size === 0;
  }
  return expected === actual;
}

/** Whether a text is as expected: exactly, but for what varies, "…" within a line, and lines of "…" alone. */
export function sameText(expected, actual) {
  const split = (text) => text.split("\n").map((line) => line.trimEnd());
  const same = (wanted, found) => {
    if (!wanted.length) return !found.length;
    if (wanted[0].trim() === ANY) {
      return wanted.length === 1 || same(wanted.slice(1), found) || (found.length > 0 && same(wanted, found.slice(1)));
    }
    return found.length > 0 && pattern(wanted[0]).test(found[0]) && same(wanted.slice(1), found.slice(1));
  };
  return same(split(expected), split(actual));
}

/** Whether the output of a command is as expected: by value, where both are JSON. */
export function sameOutput(expected, actual) {
  const [wanted, found] = [parseJson(expected), parseJson(actual)];
  return wanted && found ? sameValue(wanted.value, found.value) : sameText(expected.trim(), actual.trim());
}
