// Every block of code of README.md and docs/ runs.
//   DOCS_ROOT=../../.. PRESENCE_BIN=../../../target/debug/presence npm test
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { runPage } from "./blocks.mjs";

const ROOT = process.env.DOCS_ROOT ?? fileURLToPath(new URL("../../..", import.meta.url));
const pages = ["README.md", ...readdirSync(join(ROOT, "docs")).filter((name) => name.endsWith(".md")).map((name) => `docs/${name}`)];
assert.ok(pages.length > 10, `the pages are not in ${ROOT}`);

for (const page of pages) {
  test(page, async (t) => {
    const markdown = readFileSync(join(ROOT, page), "utf8");
    await runPage(markdown, (step, error) => t.test(`${page}:${step.line} ${step.kind}`, () => {
      if (error) assert.fail(error.message);
    }));
  });
}
