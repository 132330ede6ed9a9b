// Makes dashboard.png: the dashboard of a server of its own, with a member that fades and the
// explanation of that open.
//
//   (cd server/tests/phoenix && npm ci) && (cd server/tests/browser && npm ci)
//   PRESENCE_BIN=target/release/presence node docs/images/dashboard.mjs
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const here = new URL(".", import.meta.url);
const tests = new URL(process.env.TESTS ?? "../../server/tests/", here);
const { chromium } = createRequire(new URL("browser/", tests))("playwright-core");
const WebSocket = createRequire(new URL("phoenix/", tests))("ws");

const directory = mkdtempSync(join(tmpdir(), "presence-"));
const server = spawn(process.env.PRESENCE_BIN ?? "presence",
  ["--bind", "127.0.0.1:0", "--database", `sqlite://${directory}/presence.db`, "--grace", "50s"],
  { stdio: ["ignore", "ignore", "pipe"] });
let log = "";
server.stderr.setEncoding("utf8").on("data", (text) => (log += text));
while (!/listening on http/.test(log)) await once(server.stderr, "data");
const base = log.match(/listening on (http:\/\/[0-9.:]+)/)[1];

async function member(room, user, { info, session } = {}) {
  const query = new URLSearchParams({ ...user && { user }, ...info && { info: JSON.stringify(info) }, ...session && { session } });
  const socket = new WebSocket(`${base.replace("http", "ws")}/ws/${encodeURIComponent(room)}?${query}`);
  await once(socket, "message");
  return socket;
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
try {
  await member("lobby", "ada", { info: { device: "laptop" } });
  await member("lobby", "ada", { info: { device: "phone" } });
  await member("lobby", "bob", { info: { status: "writing" } });
  for (const [room, users] of [["lobby", [""]], ["team:design", ["ada", "cleo", "dan"]], ["team:backend", ["eve", "fay"]], ["support/42", ["bob", ""]]]) {
    for (const user of users) await member(room, user);
  }
  const cleo = await member("lobby", "cleo", { info: { status: "on a train" }, session: "a-random-key-of-cleos-tab" });
  cleo.terminate();

  const page = await browser.newPage({ viewport: { width: 1180, height: 900 }, deviceScaleFactor: 2 });
  await page.goto(`${base}/dashboard`);
  await page.locator("#room-rows tr").filter({ hasText: "lobby" }).getByRole("button").click();
  const fading = page.locator("#detail .presence").filter({ hasText: "cleo" });
  await fading.getByText("fading", { exact: true }).waitFor();
  await fading.getByRole("button", { name: "Explain" }).click();
  await fading.locator(".why").getByText(/cleo/).waitFor();
  // The second event of the feed has the rates.
  await page.waitForResponse((response) => response.url().includes("/explain"));
  await page.screenshot({ path: new URL("dashboard.png", here).pathname, fullPage: true });
} finally {
  await browser.close();
  server.kill();
  await once(server, "exit");
  rmSync(directory, { recursive: true, force: true });
}
