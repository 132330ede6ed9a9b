// The dashboard of a running server, with people in its rooms.
//   PRESENCE_URL=http://127.0.0.1:8080 CHROMIUM=/usr/bin/chromium npm test
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";

const BASE = (process.env.PRESENCE_URL ?? "http://127.0.0.1:8080").replace(/\/$/, "");
const WAIT = 10_000;

let browser;

before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
});
after(() => browser?.close());

/** A tab of its own; anything the page complains about is kept. */
async function tab(t, path) {
  const context = await browser.newContext();
  context.setDefaultTimeout(WAIT);
  t.after(() => context.close());
  const page = await context.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (line) => line.type() === "error" && complaints.push(line.text()));
  await page.goto(BASE + path);
  return { context, page, complaints };
}

async function person(t, room, name) {
  const { page } = await tab(t, `/#${encodeURIComponent(room)}`);
  await page.getByLabel("Your name").fill(name);
  await page.getByRole("button", { name: "Join #" }).click();
  await page.locator(".pane.room .pill[data-state=open]").waitFor();
  return page;
}

async function isOpen(t) {
  const { status } = await fetch(`${BASE}/api/stats`);
  if (status !== 200) t.skip("this server's API needs a key");
  return status === 200;
}

test("a room is found, its presences are explained, and one is kicked", async (t) => {
  if (!await isOpen(t)) return;
  const room = `dashboard é/<b>${randomUUID()}`;
  const ada = await person(t, room, "ada");
  await person(t, room, "");
  const { page, complaints } = await tab(t, "/dashboard");

  await page.locator("#health[data-state=open]").waitFor();
  await page.locator("#state-database[data-state=good]").waitFor();
  await page.getByLabel("Filter rooms by name").fill(room.slice(-12).toUpperCase());
  const row = page.locator("#room-rows tr").filter({ hasText: room });
  await row.waitFor();
  assert.equal(await page.locator("#room-rows tr").count(), 1);
  assert.deepEqual(await row.locator("td.n").allInnerTexts(), ["2", "1", "1", "2"]);
  const connections = page.locator("#figure-connections .value");
  assert.ok(Number((await connections.innerText()).replace(/\D/g, "")) >= 2);

  await row.getByRole("button").click();
  const detail = page.locator("#detail");
  await detail.getByRole("heading", { name: room }).waitFor();
  await detail.getByText("2 connections · 1 user · 1 anonymous").waitFor();
  const presence = detail.locator(".presence").filter({ hasText: "ada" });
  await presence.getByText("live", { exact: true }).waitFor();
  assert.equal(await detail.locator(".presence").count(), 2);

  await presence.getByRole("button", { name: "Explain" }).click();
  await presence.locator(".why").getByText(/ada's connection .* joined .*, and is live/).waitFor();

  await presence.getByRole("button", { name: "Kick" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByRole("button", { name: "Cancel" }).click();
  await dialog.waitFor({ state: "hidden" });
  await presence.getByText("live", { exact: true }).waitFor();
  await presence.getByRole("button", { name: "Kick" }).click();
  await dialog.getByRole("button", { name: "Kick" }).click();
  // The open explanation stays, and says why it has gone.
  await presence.getByText("gone", { exact: true }).waitFor();
  await presence.locator(".why").getByText("it was kicked").waitFor();
  await ada.getByRole("alert").getByText("You were removed from this room").waitFor();
  await presence.getByRole("button", { name: "Explain" }).click();
  await presence.waitFor({ state: "detached" });
  assert.equal(await detail.locator(".presence").count(), 1);
  await page.locator("#state-leaves").getByText("kicked").waitFor();
  assert.deepEqual(complaints, []);
});

test("the page links to the dashboard, which stops listening while nobody looks", async (t) => {
  if (!await isOpen(t)) return;
  const { context, page } = await tab(t, "/");
  const opened = context.waitForEvent("page");
  await page.getByRole("link", { name: "Dashboard" }).click();
  const dashboard = await opened;
  await dashboard.getByRole("heading", { name: "Dashboard" }).waitFor();
  await dashboard.locator("#figure-rooms .value").getByText(/^\d/).waitFor();

  const hide = (hidden) => dashboard.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, value: hidden });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
  const isFeed = (request) => request.url().endsWith("/api/stats/live");
  const ended = dashboard.waitForEvent("requestfailed", isFeed);
  await hide(true);
  await ended;
  const again = dashboard.waitForRequest(isFeed);
  await hide(false);
  await again;
});

test("a refused feed is explained, and a key is asked for and kept", async (t) => {
  if (!await isOpen(t)) return;
  const { page } = await tab(t, "/healthz");
  const refuse = (status, code) => ({ status, contentType: "application/json", body: JSON.stringify({ error: { code, message: "No." } }) });
  await page.route("**/api/**", (route) => route.fulfill(refuse(403, "loopback_only")));
  await page.goto(`${BASE}/dashboard`);
  await page.getByText("--api-key").waitFor();
  assert.equal(await page.getByLabel("API key").isVisible(), false);

  await page.unroute("**/api/**");
  await page.route("**/api/**", (route) => (route.request().headers().authorization === "Bearer k3y"
    ? route.continue() : route.fulfill(refuse(401, "unauthorized"))));
  await page.getByRole("button", { name: "Try again" }).click();
  await page.getByLabel("API key").fill("wrong");
  await page.getByRole("button", { name: "Open" }).click();
  await page.getByText("does not take this key").waitFor();
  await page.getByLabel("API key").fill("k3y");
  await page.getByRole("button", { name: "Open" }).click();
  await page.locator("#health[data-state=open]").waitFor();
  await page.reload();
  await page.locator("#health[data-state=open]").waitFor();
  assert.equal(await page.evaluate(() => JSON.stringify({ ...localStorage }).includes("k3y")), false);
});

test("two hundred clients come and go before its eyes", async (t) => {
  if (!await isOpen(t)) return;
  const { page, complaints } = await tab(t, "/dashboard");
  const connections = async () => Number((await page.locator("#figure-connections .value").innerText()).replace(/\D/g, ""));
  await page.locator("#health[data-state=open]").waitFor();
  await page.getByLabel("Filter rooms by name").fill("crowd-");

  const crowd = (await tab(t, "/healthz")).page;
  await crowd.evaluate(() => {
    globalThis.crowd = Array.from({ length: 200 }, (_, i) =>
      new WebSocket(`ws://${location.host}/ws/crowd-${i % 20}?presence=none&user=client-${i}`));
    return Promise.all(globalThis.crowd.map((socket) => new Promise((open, fail) => Object.assign(socket, { onopen: open, onerror: fail }))));
  });
  const rows = page.locator("#room-rows tr").filter({ hasText: "crowd-" });
  await until("all rooms are listed", async () => await rows.count() === 20 && await connections() >= 200);
  await crowd.evaluate(() => globalThis.crowd.forEach((socket) => socket.close(1000)));
  await until("all have gone", async () => await rows.count() === 0);
  assert.deepEqual(complaints, []);
});

async function until(what, isTrue) {
  const end = Date.now() + WAIT;
  while (!await isTrue()) {
    assert.ok(Date.now() < end, what);
    await new Promise((next) => setTimeout(next, 50));
  }
}
