// The rooms of this tab, which one is shown, and the frame around it.
import { $, at, el, remember } from "./common.js";

export const MAX = { rooms: 8, lines: 300, frames: 50, roster: 200, shown: 4000 };

export const rooms = new Map(); // name -> Room
export let active = null;

export const clip = (text) => (text.length > MAX.shown ? `${text.slice(0, MAX.shown)}…` : text);

export const hashOf = (room) => `#${encodeURIComponent(room)}`;
export function roomFromHash() {
  try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; }
}

export function log(room, direction, text) {
  const list = $("#frames");
  const following = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const arrow = { in: "↓", out: "↑", meta: "·" }[direction];
  const time = new Date().toLocaleTimeString([], { hour12: false });
  list.append(el("li", direction, el("time", "", time), el("span", `dir ${direction}`, arrow), el("bdi", "", room.name), el("span", "", clip(text))));
  while (list.childElementCount > MAX.frames) list.firstElementChild.remove();
  $("#wire-count").textContent = list.childElementCount;
  if (following) list.scrollTop = list.scrollHeight;
}

export function countUnread() {
  let total = 0;
  for (const room of rooms.values()) {
    if (room === active && !document.hidden) room.unread = 0;
    total += room.unread;
    $(".badge", room.tab).textContent = room.unread ? Math.min(room.unread, 99) : "";
  }
  document.title = `${total ? `(${total}) ` : ""}${active ? `#${active.name} · presence` : "presence: who is where, right now"}`;
}

/** Shows a room; null shows the join form. */
export function show(room) {
  active = room;
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const selected = room ? room.tab : $("#tab-join");
  for (const tab of tabs) {
    tab.setAttribute("aria-selected", String(tab === selected));
    tab.tabIndex = tab === selected ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== selected;
  }
  selected.scrollIntoView({ block: "nearest", inline: "nearest" });
  if (room) {
    history.replaceState(null, "", hashOf(room.name));
    room.follow();
  }
  countUnread();
  drawCurl();
}

export function drawCurl() {
  // encodeURIComponent leaves quotes, which a shell interprets.
  const room = encodeURIComponent(active?.name ?? ($("#room").value.trim() || "lobby")).replace(/'/g, "%27");
  $("#curl").textContent = `curl -X POST '${at(`api/rooms/${room}/messages`)}' \\\n  -H 'Content-Type: application/json' -d '{"text":"Hello from curl"}'`;
}

/** A reload joins the same rooms again; rooms joined with a token need it once more. */
export function saveRooms() {
  const list = [...rooms.values()].filter((room) => !room.token).map((room) => [room.name, room.me]);
  remember("sessionStorage", "rooms", JSON.stringify(list));
}
