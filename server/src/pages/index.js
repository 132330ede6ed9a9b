// The page at /: joins rooms and shows one of them.
import { $, copy, recall, recallJson, remember } from "./common.js";
import { paint, subjectOf } from "./people.js";
import { Room } from "./room.js";
import { MAX, drawCurl, countUnread, roomFromHash, rooms, saveRooms, show } from "./tabs.js";

const HEARTBEAT_MS = 20_000;

function problemWith(kind, value) {
  if ([...value].length > 255) return `A ${kind} has at most 255 characters.`;
  if (/\p{Cc}|\p{Cs}/u.test(value)) return `A ${kind} has no control characters.`;
  if (kind === "name" && ["__proto__", "constructor", "prototype"].includes(value)) return "That name is reserved; take another.";
  // A browser resolves these two as path segments, even percent-encoded.
  if (kind === "room" && (value === "." || value === "..")) return "A browser cannot ask for a room of that name.";
  return "";
}

function join(name, user, token) {
  const old = rooms.get(name);
  // Refused or kicked, or as another user: use what the form has now.
  if (old && (old.state === "stopped" || old.credentials !== JSON.stringify([user, token]))) old.leave();
  const room = rooms.get(name) ?? new Room(name, user, token);
  rooms.set(name, room);
  saveRooms();
  show(room);
  return room;
}

function preview() {
  const token = $("#token").value.trim();
  const id = token ? subjectOf(token) : $("#name").value.trim() || null;
  paint($("#preview-avatar"), id);
  $("#preview-text").textContent = id === null
    ? (token ? "The server reads who you are from the token." : "Without a name you lurk: counted, not named.") : `You will appear as ${id}.`;
  $("#join .primary").textContent = `Join #${$("#room").value.trim() || "lobby"}`;
  $("#join-error").textContent = "";
  drawCurl();
}

$("#name").value = recall("localStorage", "name") ?? "";
$("#room").value = roomFromHash() || recall("localStorage", "room") || "lobby";
$("#join").oninput = preview;
$("#join").onsubmit = (event) => {
  event.preventDefault();
  const [user, room, token] = ["name", "room", "token"].map((id) => $(`#${id}`).value.trim());
  const name = room || "lobby";
  const wrong = problemWith("name", user) || problemWith("room", name) ||
    (rooms.size >= MAX.rooms && !rooms.has(name) ? `You are in ${MAX.rooms} rooms; leave one first.` : "");
  if (wrong) return void ($("#join-error").textContent = wrong);
  remember("localStorage", "name", user);
  remember("localStorage", "room", name);
  join(name, user, token).$text.focus({ preventScroll: true });
};
$("#tab-join").onclick = () => { show(null); $("#room").select(); };
$(".tabs").onkeydown = (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  next.click();
  next.focus();
};
$("#copy-curl").onclick = (event) => copy($("#curl").textContent, event.currentTarget);

const each = (what) => { for (const room of rooms.values()) what(room); };
const wake = () => each((room) => room.wake());
addEventListener("online", wake);
document.addEventListener("visibilitychange", () => {
  countUnread();
  if (!document.hidden) wake();
});
addEventListener("hashchange", () => {
  const name = roomFromHash();
  if (rooms.has(name)) return show(rooms.get(name));
  $("#room").value = name || "lobby";
  preview();
  show(null);
});
// A closed tab leaves at once; otherwise the others would see it until its grace period ends.
addEventListener("pagehide", () => each((room) => room.drop(1000)));
addEventListener("pageshow", ({ persisted }) => { if (persisted) each((room) => room.state !== "stopped" && room.connect()); });

// Browsers slow the timers of a background tab to one per minute, too slow to
// stay present, but not the timers of a worker.
try { new Worker(new URL("./heartbeat.js", import.meta.url)).onmessage = () => each((room) => room.beat()); }
catch { setInterval(() => each((room) => room.beat()), HEARTBEAT_MS); }

addEventListener("storage", ({ key, newValue }) => each((room) => {
  if (newValue && key === `presence.mood.${room.me}`) room.adopt(recallJson("localStorage", `mood.${room.me}`, {}));
}));

const saved = recallJson("sessionStorage", "rooms", []);
const wanted = roomFromHash();
preview();
show(null);
for (const [name, user] of saved.slice(0, MAX.rooms)) join(name, user ?? "", "");
if (saved.length && wanted) show(rooms.get(wanted) ?? null);
