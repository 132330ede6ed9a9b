// The links of the pages lead somewhere in what rustdoc has made of them.
//   RUSTDOC=../../../target/doc npm test
import assert from "node:assert/strict";
import { existsSync, readFileSync, readdirSync, statSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const RUSTDOC = process.env.RUSTDOC ?? fileURLToPath(new URL("../../../target/doc", import.meta.url));

test("links and anchors of the guide, and of the front page", () => {
  const crate = join(RUSTDOC, "actix_presence");
  const guide = join(crate, "guide");
  const modules = readdirSync(guide).map((name) => join(guide, name, "index.html")).filter(existsSync);
  assert.ok(modules.length >= 10, `the guide is not in ${guide}`);
  const wrong = [];
  for (const page of [join(crate, "index.html"), ...modules]) {
    const text = readFileSync(page, "utf8");
    const main = text.slice(text.indexOf('<section id="main-content"'));
    for (const [, href] of main.matchAll(/ href="([^"]+)"/g)) {
      const [path, anchor] = href.replaceAll("&amp;", "&").split("#");
      // Lines of sources are no ids.
      if (/^(https?|data):/.test(href) || path.endsWith(".rs.html")) continue;
      let file = path ? resolve(dirname(page), path) : page;
      if (existsSync(file) && statSync(file).isDirectory()) file = join(file, "index.html");
      const found = existsSync(file) && (!anchor || readFileSync(file, "utf8").includes(`id="${anchor}"`));
      if (!found) wrong.push(`${page}: ${href}`);
    }
    for (const [, image] of main.matchAll(/<img[^>]* src="([^"]+)"/g)) {
      if (!image.startsWith("data:image/")) wrong.push(`${page}: the image ${image}`);
    }
  }
  assert.deepEqual(wrong, []);
});
