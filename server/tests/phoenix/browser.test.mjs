// The package's own bundle in a real browser.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { presences, serve, someRoom, until } from "./support.mjs";

const BUNDLE = new URL("./node_modules/phoenix/priv/static/phoenix.min.js", import.meta.url);

let browser;
before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
});
after(() => browser?.close());

/** An origin with a page that loads the bundle. */
async function site(t) {
  const bundle = await readFile(BUNDLE);
  const web = createServer((request, response) => {
    const script = request.url === "/phoenix.js";
    response.setHeader("content-type", script ? "text/javascript" : "text/html");
    response.end(script ? bundle : "<!doctype html><link rel=icon href='data:,'><script src=/phoenix.js></script>");
  }).listen(0, "127.0.0.1");
  await once(web, "listening");
  t.after(() => { web.closeAllConnections(); web.close(); });
  return `http://127.0.0.1:${web.address().port}`;
}

/** Runs in the page: joins, and shows who is there. */
function enter([url, room, user]) {
  window.log = [];
  window.socket = new Phoenix.Socket(url, { params: { user } });
  socket.connect();
  window.channel = socket.channel(room, { info: { browser: true } });
  window.presence = new Phoenix.Presence(channel);
  presence.onJoin((key, current) => log.push(`${key} ${current ? "again" : "joins"}`));
  presence.onLeave((key, current) => log.push(`${key} ${current.metas.length ? "less" : "leaves"}`));
  channel.on("shout", ({ text }) => log.push(text));
  return new Promise((resolve, reject) => channel.join().receive("ok", resolve).receive("error", reject));
}

const list = (page) => page.evaluate(() => presence.list((key, { metas }) => `${key} ${metas.length}`).sort().join());

test("two pages meet, talk, and one is loaded anew", async (t) => {
  const origin = await site(t);
  const server = await serve(t, ["--allow-origin", origin]);
  const room = someRoom();
  const url = `${server.url.replace("http", "ws")}/socket`;
  const pages = {};
  const complaints = [];
  for (const user of ["ada", "bob"]) {
    const context = await browser.newContext();
    t.after(() => context.close());
    pages[user] = await context.newPage();
    pages[user].on("pageerror", (error) => complaints.push(String(error)));
    await pages[user].goto(origin);
    assert.deepEqual(await pages[user].evaluate(enter, [url, room, user]), {});
  }
  const both = async () => await list(pages.ada) === "ada 1,bob 1" && await list(pages.bob) === "ada 1,bob 1";
  await until("both see both", both);
  await pages.bob.evaluate(() => { channel.push("shout", { text: "hello" }); });
  for (const page of Object.values(pages)) await page.waitForFunction(() => log.includes("hello"));

  await pages.ada.reload();
  await pages.bob.waitForFunction(() => log.includes("ada leaves"));
  assert.equal(await list(pages.bob), "bob 1");
  await pages.ada.evaluate(enter, [url, room, "ada"]);
  await until("both see both again", both);
  assert.deepEqual((await presences(room, server.url)).map((one) => one.user).sort(), ["ada", "bob"]);
  assert.deepEqual(complaints, []);
});

test("a page of another origin is not let in", async (t) => {
  const origin = await site(t);
  const server = await serve(t, ["--allow-origin", "https://example.org"]);
  const page = await browser.newPage();
  t.after(() => page.close());
  await page.goto(origin);
  const refused = await page.evaluate((url) => new Promise((resolve) => {
    const socket = new Phoenix.Socket(url, { params: { user: "eve" } });
    socket.onOpen(() => resolve(false));
    socket.onError(() => resolve(true));
    socket.connect();
  }), `${server.url.replace("http", "ws")}/socket`);
  assert.ok(refused);
});
