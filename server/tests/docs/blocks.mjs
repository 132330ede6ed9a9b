// Runs the blocks of a page, and collects what is wrong with it.
import { sameOutput } from "./compare.mjs";
import { converse } from "./frames.mjs";
import { commands, parse } from "./page.mjs";
import { Place } from "./place.mjs";
import { runScript } from "./script.mjs";

/** Runs all blocks of a page in order; `report` hears `(step, error or null)` of each that was run. */
export async function runPage(markdown, report) {
  const place = new Place();
  const clients = new Map();
  const steps = parse(markdown);
  try {
    for (const [at, step] of steps.entries()) {
      const action = choose(step, steps[at + 1], place, clients);
      if (!action) continue;
      let error = null;
      try {
        await action();
      } catch (caught) {
        error = caught;
      }
      await report(step, error);
    }
  } finally {
    for (const { socket } of clients.values()) socket.terminate();
    await place.close();
  }
}

function choose(step, following, place, clients) {
  const { kind, attributes = [], text } = step;
  if (kind === "server") return () => (text === "none" ? place.withoutServer() : place.restart(text));
  const served = (action) => async () => {
    await place.serve();
    await action();
  };
  if (attributes[0] === "held-by") return null;
  if (kind === "console") return served(() => runCommands(text, place));
  if (kind === "text" && attributes[0] === "frames") return served(() => converse(text, place, clients));
  if (kind === "sql") return served(() => runSql(text, place));
  if (kind === "js") {
    const output = following?.kind === "text" && following.attributes[0] === "output" ? following.text : undefined;
    return served(() => runScript(text, output, place));
  }
  return null; // compiled elsewhere, or output
}

async function runCommands(text, place) {
  for (const { command, output } of commands(text)) {
    if (/\b(sudo|apt-get)\b/.test(command)) throw new Error(`$ ${command}\nneeds "console held-by PATH"`);
    const { output: actual, code, errors } = await place.run(command);
    if (code !== 0) throw new Error(`$ ${command}\nexit code ${code}\n${actual}\n${errors}`);
    if (output && !sameOutput(output, actual)) {
      throw new Error(`$ ${command}\nexpected:\n${output}\nactual:\n${actual.trim()}\n${errors}`);
    }
  }
}

async function runSql(text, place) {
  const quoted = `'${text.replaceAll("'", "'\\''")}'`;
  const { code, errors, output } = await place.run(`sqlite3 -bail presence.db ${quoted}`);
  if (code !== 0) throw new Error(`${text}\nexit code ${code}\n${output}\n${errors}`);
}
