// Scripts of the pages, run as modules in Node.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { sameText } from "./compare.mjs";
import { within } from "./place.mjs";

const SCRIPT_TIMEOUT = 30_000;
const MODULES = fileURLToPath(new URL("node_modules", import.meta.url));
// What browsers have, and not every version of Node.
const BROWSER = `import WebSocket from "ws";
globalThis.WebSocket ??= WebSocket;
globalThis.sessionStorage ??= {};
`;

/** Runs a script until it ends, or has printed these lines. */
export async function runScript(text, expected, place) {
  const file = join(place.directory, "script.mjs");
  writeFileSync(join(place.directory, "browser.mjs"), BROWSER);
  writeFileSync(file, `import "./browser.mjs";\n${await place.localize(text)}`);
  try {
    symlinkSync(MODULES, join(place.directory, "node_modules"));
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
  }
  const child = spawn(process.execPath, [file], { cwd: place.directory, stdio: ["ignore", "pipe", "pipe"] });
  const ended = once(child, "exit");
  let output = "";
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text) => (errors += text));
  const lines = expected?.split("\n").length;
  const printed = new Promise((resolve) => {
    child.stdout.setEncoding("utf8").on("data", (text) => {
      output += text;
      if (lines && output.split("\n").length > lines) resolve();
    });
  });
  try {
    await within(SCRIPT_TIMEOUT, "the script", Promise.race([ended, printed]));
  } catch (error) {
    throw new Error(`${error.message}\nit has printed: ${output}\n${errors}`);
  } finally {
    child.kill("SIGKILL");
  }
  const [code] = await ended;
  const actual = place.globalize(output).split("\n").slice(0, lines).join("\n").trim();
  if (expected !== undefined) {
    if (!sameText(expected.trim(), actual)) throw new Error(`expected:\n${expected}\nactual:\n${actual}\n${errors}`);
  } else if (code !== 0) throw new Error(`exit code ${code}\n${errors}`);
}
