// What a page consists of: its blocks of code, and the comments that choose the flags of its server.

/** The steps of a page, in order: `{ kind, attributes, text, line }`, of which `server` is a comment. */
export function parse(markdown) {
  const steps = [];
  const lines = markdown.split("\n");
  for (let at = 0; at < lines.length; at++) {
    const server = lines[at].match(/^<!-- server:(.*)-->$/);
    if (server) steps.push({ kind: "server", text: server[1].trim(), line: at + 1 });
    const fence = lines[at].match(/^(`{3,})(.*)$/);
    if (!fence) continue;
    const line = at + 1;
    const [kind = "", ...attributes] = fence[2].trim().split(/\s+/);
    const text = [];
    for (at++; at < lines.length && lines[at] !== fence[1]; at++) text.push(lines[at]);
    steps.push({ kind, attributes, text: text.join("\n"), line });
  }
  return steps;
}

/** The commands of a shell session, each with the output that should follow it; `line` counts from 1. */
export function commands(text) {
  const found = [];
  let continued = false;
  for (const [at, line] of text.split("\n").entries()) {
    if (continued) found.at(-1).command += `\n${line}`;
    else if (line.startsWith("$ ")) found.push({ command: line.slice(2), output: [], line: at + 1 });
    else if (found.length) found.at(-1).output.push(line);
    else if (line.trim()) throw new Error(`output before the first command: ${line}`);
    continued = (continued || line.startsWith("$ ")) && line.endsWith("\\");
  }
  return found.map((one) => ({ ...one, output: one.output.join("\n").trim() }));
}
