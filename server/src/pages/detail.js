// One room: its presences, an explanation of each, and a button to kick it.
import { $, plural } from "./common.js";
import { ask, page, roomPath } from "./api.js";
import { count, span } from "./figures.js";
import { paint } from "./people.js";

const SHOWN = 50;
const REST_MS = 2000;
const MAX_INFO = 400;

const STATES = {
  live: "Its client is connected.",
  fading: "Its connection broke; the client may still reconnect.",
  gone: "It has left.",
};

export class Detail {
  room = null;
  cursors = [null];
  rows = new Map(); // channel name -> row
  explained = null; // the presence whose explanation is open
  shared = false; // whether there are several nodes
  fresh = 0;
  asked = 0;

  constructor() {
    this.list = $("#presences");
    $("#detail-more").onclick = () => { this.cursors.push(this.next); this.restart(); };
    $("#detail-back").onclick = () => { this.cursors.pop(); this.restart(); };
  }

  /** Shows a room; null shows none. */
  open(room) {
    if (this.room === room) return;
    this.room = room;
    this.cursors = [null];
    $("#detail").hidden = room === null;
    $("#split").classList.toggle("open", room !== null);
    if (room === null) return this.clear();
    $("#detail-title bdi").textContent = room;
    $("#detail-counts").textContent = "";
    $("#detail-join").href = `./#${encodeURIComponent(room)}`;
    this.restart();
    // On narrow screens the panel is below the others, and may be out of sight.
    $("#detail").scrollIntoView({ block: "nearest" });
  }

  clear() {
    this.asked++;
    this.explained = null;
    this.rows.clear();
    this.list.replaceChildren();
  }

  restart() {
    this.clear();
    $("#detail .scroll").scrollTop = 0;
    return this.refresh(true);
  }

  async refresh(now) {
    const { room } = this;
    if (room === null || (!now && performance.now() < this.fresh)) return;
    const asked = ++this.asked;
    this.fresh = Infinity;
    try {
      const list = await page(`${roomPath(room)}/presences`, SHOWN, this.cursors.at(-1));
      if (asked === this.asked) this.draw(list);
    } catch (refused) {
      if (asked === this.asked) {
        if (refused.status === 404) this.draw({ presences: [], next: null });
        else $("#detail-note").textContent = refused.message;
      }
    }
    if (asked === this.asked) this.fresh = performance.now() + REST_MS;
    if (this.explained) await this.explain(this.explained);
  }

  /** Updates the counts of this room from the list of rooms. */
  count({ connections, users, anonymous }) {
    $("#detail-counts").textContent = `${plural(connections, "connection")} · ${plural(users, "user")} · ${count(anonymous)} anonymous`;
  }

  draw({ presences, next }) {
    this.next = next;
    const keep = new Set(presences.map((presence) => presence.channel_name));
    for (const [id, row] of this.rows) {
      if (keep.has(id)) continue;
      if (id === this.explained) { this.setState(row, "gone"); continue; }
      row.remove();
      this.rows.delete(id);
    }
    const now = Date.now();
    let previous = null;
    for (const presence of presences) {
      const row = this.rows.get(presence.channel_name) ?? this.row(presence);
      this.fill(row, presence, now);
      const place = previous ? previous.nextElementSibling : this.list.firstElementChild;
      if (place !== row) this.list.insertBefore(row, place);
      previous = row;
    }
    $("#detail-empty").hidden = this.rows.size > 0;
    $("#detail-empty").textContent = this.cursors.length > 1 ? "Nobody is left on this page." : "Nobody is in this room any more. A room is there as long as somebody is in it.";
    const at = this.cursors.length;
    $("#detail-note").textContent = at > 1 || next !== null ? `Page ${at}` : "";
    $("#detail-more").hidden = next === null;
    $("#detail-back").hidden = at < 2;
  }

  row({ channel_name: id, user }) {
    const row = $("#presence-template").content.firstElementChild.cloneNode(true);
    row.dataset.id = id;
    $(".explain", row).onclick = () => this.toggle(id);
    $(".kick", row).onclick = () => this.kick(id, user);
    this.rows.set(id, row);
    return row;
  }

  fill(row, { channel_name: id, user, info, joined_at, last_seen, state, node }, now) {
    paint($(".avatar", row), user, info);
    $(".id", row).textContent = user ?? "anonymous";
    this.setState(row, state);
    const ago = (time) => span(Math.max(0, (now - Date.parse(time)) / 1000));
    $(".facts", row).textContent = `…${id.slice(-8)}${this.shared ? ` · on ${node}` : ""} · joined ${ago(joined_at)} ago · last seen ${ago(last_seen)} ago`;
    $(".facts", row).title = `connection ${id} on node ${node}\njoined ${joined_at}\nlast seen ${last_seen}`;
    const text = JSON.stringify(info);
    $(".info", row).textContent = text === "{}" ? "" : text.length > MAX_INFO ? `${text.slice(0, MAX_INFO)}…` : text;
  }

  setState(row, state) {
    const badge = $(".state", row);
    row.dataset.state = state;
    badge.textContent = state;
    badge.title = STATES[state] ?? "";
    $(".kick", row).disabled = state === "gone";
  }

  toggle(id) {
    const closed = this.explained;
    if (closed) {
      const row = this.rows.get(closed);
      this.explained = null;
      if (row?.dataset.state === "gone") { row.remove(); this.rows.delete(closed); }
      else if (row) this.show(row, null);
    }
    if (closed !== id) {
      this.explained = id;
      return this.explain(id);
    }
  }

  show(row, text) {
    $(".explain", row).setAttribute("aria-expanded", String(text !== null));
    $(".why", row).hidden = text === null;
    if (text !== null && $(".why", row).textContent !== text) $(".why", row).textContent = text;
  }

  async explain(id) {
    const row = this.rows.get(id);
    const words = await ask(`${roomPath(this.room)}/presences/${id}/explain`).catch((refused) => ({ text: refused.message }));
    if (this.explained !== id || this.rows.get(id) !== row) return;
    this.show(row, words.text);
    if (words.state) this.setState(row, words.state);
  }

  async kick(id, user) {
    const who = user ?? "this anonymous connection";
    $("#confirm h2").textContent = `Kick ${who}?`;
    $("#confirm p").textContent = `Connection …${id.slice(-8)} leaves all its rooms, and its socket is closed with code 4001. ${user === null ? "" : "Other connections of the same user stay. "}A well-behaved client does not come back by itself.`;
    const dialog = $("#confirm");
    dialog.returnValue = "no";
    dialog.showModal();
    await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
    if (dialog.returnValue !== "yes") return;
    try {
      const kicked = await ask(`api/connections/${id}`, "DELETE");
      if (kicked?.partial) $("#detail-note").textContent = "The other nodes were told; whether one of them has the connection cannot be asked now.";
    } catch (refused) {
      if (refused.status !== 404) $("#detail-note").textContent = refused.message;
    }
    return this.refresh(true);
  }
}
