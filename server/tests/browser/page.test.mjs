// Two browsers on the page of a running server.
//   PRESENCE_URL=http://127.0.0.1:8080 CHROMIUM=/usr/bin/chromium npm test
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";

const BASE = (process.env.PRESENCE_URL ?? "http://127.0.0.1:8080").replace(/\/$/, "");
const WAIT = 10_000;
// A tab whose farewell got lost fades for the server's --grace (10 s) first.
const GONE = 30_000;

let browser;

before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
});
after(() => browser?.close());

/** A new person: own storage, own tab; anything the page complains about is kept. */
async function person(t, room, name, prepare = async () => {}) {
  const context = await browser.newContext();
  context.setDefaultTimeout(WAIT);
  t.after(() => context.close());
  const page = await context.newPage();
  await prepare(page);
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (line) => line.type() === "error" && complaints.push(line.text()));
  await page.goto(`${BASE}/#${encodeURIComponent(room)}`);
  assert.equal(await page.getByLabel("Room", { exact: true }).inputValue(), room, "the link carries the room");
  await page.getByLabel("Your name").fill(name);
  await page.getByRole("button", { name: "Join #" }).click();
  const pane = page.locator(".pane.room");
  await pane.locator(".pill[data-state=open]").waitFor();
  return {
    page, pane, complaints,
    member: (id) => pane.locator(`.roster [data-id=${JSON.stringify(id)}]`),
    said: (text) => pane.locator(".log .msg .body").filter({ hasText: text }),
    noted: (text) => pane.locator(".log .sys").filter({ hasText: text }),
    async say(text) {
      await pane.getByLabel("Message", { exact: true }).fill(text);
      await pane.getByRole("button", { name: "Send" }).click();
    },
  };
}

const someRoom = () => `page test é/${randomUUID()}`;

test("two people meet, talk, change status and part", async (t) => {
  const room = someRoom();
  const ada = await person(t, room, "ada");
  await ada.member("ada").getByText("you", { exact: true }).waitFor();
  const bob = await person(t, room, "bob & co");

  await ada.member("bob & co").waitFor();
  await bob.member("ada").waitFor();
  await ada.noted("bob & co joined").waitFor();

  await ada.say("hello bob");
  await bob.said("hello bob").waitFor();
  await ada.said("hello bob").waitFor();
  const markup = "<img src=x onerror=alert(1)>";
  await bob.say(markup);
  await ada.said(markup).waitFor();
  assert.equal(await ada.pane.locator(".log img").count(), 0, "what people write is text");

  await bob.pane.getByLabel("Status").selectOption("busy");
  await ada.member("bob & co").getByText("Busy").waitFor();
  await ada.member("bob & co").locator(".avatar[data-status=busy]").waitFor();

  await bob.page.close();
  await ada.member("bob & co").waitFor({ state: "detached", timeout: GONE });
  assert.equal(await ada.pane.locator(".roster [data-id]").count(), 1);
  assert.deepEqual([...ada.complaints, ...bob.complaints], []);
});

test("a second tab counts, a lurker is only a number, leaving is seen", async (t) => {
  const room = someRoom();
  const ada = await person(t, room, "ada");
  const again = await person(t, room, "ada");
  await ada.member("ada").getByText("2 tabs").waitFor();
  await again.pane.getByLabel("Note").fill("on the phone");
  await again.pane.getByLabel("Note").press("Enter");
  await ada.member("ada").getByText("on the phone").waitFor();
  const lurker = await person(t, room, "");
  await ada.pane.locator(".lurkers").getByText("1 lurker").waitFor();
  await lurker.say("psst");
  await ada.said("psst").waitFor();

  await again.pane.getByRole("button", { name: "Leave" }).click();
  await ada.member("ada").getByText("2 tabs").waitFor({ state: "detached" });
  await lurker.pane.getByRole("button", { name: "Leave" }).click();
  await ada.pane.locator(".lurkers:empty").waitFor({ state: "attached" });
  assert.deepEqual([...ada.complaints, ...again.complaints, ...lurker.complaints], []);
});

test("what is sent over HTTP is shown as the server's", async (t) => {
  const room = someRoom();
  const ada = await person(t, room, "ada");
  const answer = await fetch(`${BASE}/api/rooms/${encodeURIComponent(room)}/messages`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ n: [1, 2] }),
  });
  if ([401, 403].includes(answer.status)) return t.skip("this server's API needs a key");
  assert.deepEqual(await answer.json(), { recipients: 1 });
  const message = ada.pane.locator(".log .msg").filter({ hasText: '"n"' });
  await message.getByText("server", { exact: true }).waitFor();
});

test("a connection that breaks comes back by itself, and the others see nobody leave", async (t) => {
  const room = someRoom();
  const ada = await person(t, room, "ada");
  const sockets = [];
  const bob = await person(t, room, "bob", (page) => page.routeWebSocket(/\/ws\//, (socket) => {
    const server = socket.connectToServer();
    sockets.push({ socket, server });
  }));
  await ada.member("bob").waitFor();

  // As if the way between them was cut: neither end says goodbye.
  const [{ socket, server }] = sockets;
  await server.close({ code: 3001 });
  await socket.close({ code: 3001 });
  await bob.pane.locator(".pill[data-state=waiting]").waitFor();
  await bob.pane.locator(".pill[data-state=open]").waitFor();
  assert.equal(sockets.length, 2);
  await bob.say("back again");
  await ada.said("back again").waitFor();
  assert.equal(await ada.noted("bob").count(), 1, "only that bob has joined");
  assert.equal(await ada.member("bob").count(), 1);
});

test("a room with too many to list shows how many there are, and then who", async (t) => {
  const room = someRoom();
  const sockets = [];
  const ada = await person(t, room, "ada", (page) => page.routeWebSocket(/\/ws\//, (socket) => {
    socket.connectToServer();
    sockets.push(socket);
  }));
  await ada.member("ada").waitFor();
  const [socket] = sockets;
  const tell = (type, payload) => socket.send(JSON.stringify({ type, payload: { channel_name: room, ...payload } }));
  for (const users of [4000, 4001]) {
    tell("presence_count", { users, lurkers: 2, version: users, truncated: true });
    await ada.pane.locator(".count").getByText(`${users} people`).waitFor();
  }
  await ada.pane.locator(".alone").getByText("Too many to list").waitFor();
  await ada.pane.locator(".lurkers").getByText("2 lurkers").waitFor();
  await ada.member("ada").waitFor({ state: "detached" });

  const members = ["ada", "bob"].map((id) => ({ id, info: {}, connections: 1 }));
  tell("presence_state", { members, lurkers: 0, version: 5000, epoch: "e" });
  await ada.member("bob").waitFor();
  assert.equal(await ada.noted("bob").count(), 0, "nobody says that bob came now");
  tell("presence_diff", { since: 5000, version: 5001, joins: [], leaves: [{ id: "bob", info: {}, cause: "left" }], lurkers: 0 });
  await ada.noted("bob left").waitFor();
  await ada.say("and we talk");
  await ada.said("and we talk").waitFor();
  assert.equal(sockets.length, 1);
  assert.deepEqual(ada.complaints, []);
});
