// Runs the blocks of some pages: node check.mjs docs/clients.md …
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { runPage } from "./blocks.mjs";

const ROOT = process.env.DOCS_ROOT ?? fileURLToPath(new URL("../../..", import.meta.url));
if (process.argv.length < 3) {
  console.error("node check.mjs PAGE...: paths from the root of the checkout, which is DOCS_ROOT");
  process.exit(2);
}
let failed = 0;
for (const page of process.argv.slice(2)) {
  let count = 0;
  await runPage(readFileSync(join(ROOT, page), "utf8"), (step, error) => {
    count += 1;
    if (!error) return;
    failed += 1;
    console.log(`${page}:${step.line} ${step.kind}: ${error.message}\n`);
  });
  console.log(`${page}: ${count} steps`);
}
process.exit(failed ? 1 : 0);
