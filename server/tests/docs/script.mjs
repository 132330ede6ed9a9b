// Scripts of the pages, run as modules in Node.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { sameText } from "./compare.mjs";
import { within } from "./place.mjs";

const SCRIPT_TIMEOUT = 60_000;
const MODULES = fileURLToPath(new URL("node_modules", import.meta.url));
// What browsers have, and not every version of Node.
const BROWSER = `import WebSocket from "ws";
globalThis.WebSocket ??= WebSocket;
globalThis.sessionStorage ??= {};
`;

/** Runs a script until it ends, or has printed these lines. */
export async function runScript(text, expected, place) {
  const file = join(place.scratch, "script.mjs");
  writeFileSync(join(place.scratch, "browser.mjs"), BROWSER);
  writeFileSync(file, `import "./browser.mjs";\n${await place.localize(text)}`);
  try {
    symlinkSync(MODULES, join(place.scratch, "node_modules"));
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
  }
  const child = spawn(process.execPath, [file], {
    cwd: place.directory, env: place.environment, stdio: ["ignore", "pipe", "pipe"],
  });
  const ended = once(child, "close");
  let output = "";
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text) => (errors += text));
  const wanted = expected?.trim();
  /** Whether the lines are there, or can no longer be. */
  const decided = () => {
    const lines = place.globalize(output).split("\n").slice(0, -1);
    if (beginsAs(wanted, lines)) return true;
    return !/^\s*…\s*$/m.test(wanted) && lines.length >= wanted.split("\n").length;
  };
  const printed = new Promise((resolve) => {
    child.stdout.setEncoding("utf8").on("data", (text) => {
      output += text;
      if (wanted !== undefined && decided()) resolve();
    });
  });
  let late = null;
  try {
    await within(SCRIPT_TIMEOUT, "the script", Promise.race([ended, printed]));
  } catch (error) {
    late = error.message;
  }
  child.kill("SIGKILL");
  const [code] = await ended;
  const actual = place.globalize(output).trimEnd();
  const said = `actual:\n${actual}\n${late ?? ""}\n${place.globalize(errors)}`;
  if (wanted !== undefined) {
    if (!beginsAs(wanted, actual.split("\n"))) throw new Error(`expected:\n${wanted}\n${said}`);
  } else if (code !== 0) throw new Error(`exit code ${code}\n${said}`);
}

/** Whether the first of these lines are the expected ones. */
function beginsAs(wanted, lines) {
  return lines.some((_, at) => sameText(wanted, lines.slice(0, at + 1).join("\n")));
}
