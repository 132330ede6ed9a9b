// Runs the blocks of a page, and collects what is wrong with it.
import { join } from "node:path";
import { Clients, converse } from "./frames.mjs";
import { commands, parse } from "./page.mjs";
import { Place, quote } from "./place.mjs";
import { runScript } from "./script.mjs";

/** Runs all blocks of a page in order; `report` hears `(step, error or null)` of each that was run. */
export async function runPage(markdown, report) {
  const place = new Place();
  const clients = new Clients();
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
    clients.end();
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
  if (kind === "console") return served(() => runCommands(step, place));
  if (kind === "text" && attributes[0] === "frames") return served(() => converse(step, place, clients));
  if (kind === "sql") return served(() => runSql(text, place));
  if (kind === "js") {
    const output = following?.kind === "text" && following.attributes[0] === "output" ? following.text : undefined;
    return served(() => runScript(text, output, place));
  }
  return null; // compiled elsewhere, or output
}

async function runCommands(step, place) {
  for (const { command, output, line } of commands(step.text)) {
    try {
      await place.expect(command, output);
    } catch (error) {
      throw new Error(`line ${step.line + line}\n${error.message}`);
    }
  }
}

async function runSql(text, place) {
  const database = quote(join(place.directory, "presence.db"));
  await place.expect(`sqlite3 -bail -cmd '.timeout 5000' ${database} ${quote(text)}`, "");
}
