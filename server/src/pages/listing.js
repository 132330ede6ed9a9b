// The table of rooms: the largest from the feed, all in pages, or those that match a filter.
import { $, el, plural } from "./common.js";
import { page } from "./api.js";
import { allRooms, count } from "./figures.js";

const SHOWN = 50;
const SEARCH_PAGE = 1000; // rooms per request of a search
const MAX_SEARCH_PAGES = 20; // requests per search
const REFRESH_PAUSE_MS = 2000; // between two refreshes, times the requests that one takes

export class Listing {
  stats = null;
  mode = "size"; // or "name"
  filter = "";
  cursors = [null]; // of the pages so far; the last one is shown
  next = null;
  shown = [];
  rows = new Map(); // name -> row
  fresh = 0; // when the list may be requested again
  asked = 0; // the newest request; answers to others are ignored

  constructor(choose) {
    this.choose = choose;
    $("#by-size").onclick = () => this.setMode("size");
    $("#by-name").onclick = () => this.setMode("name");
    $("#filter").oninput = (event) => {
      this.filter = event.target.value.trim().toLowerCase();
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.refresh(true), 150);
    };
    $("#rooms-more").onclick = () => { this.cursors.push(this.next); this.refresh(true); };
    $("#rooms-back").onclick = () => { this.cursors.pop(); this.refresh(true); };
  }

  setMode(mode) {
    this.mode = mode;
    this.cursors = [null];
    this.refresh(true);
  }

  /** Updates the table from the feed. */
  take(stats) {
    this.stats = stats;
    return this.refresh(false);
  }

  async refresh(now) {
    if (!this.stats || (!now && performance.now() < this.fresh)) return;
    $("#by-size").setAttribute("aria-pressed", String(this.mode === "size" && !this.filter));
    $("#by-name").setAttribute("aria-pressed", String(this.mode === "name" && !this.filter));
    const asked = ++this.asked;
    this.fresh = Infinity; // until this refresh is done
    let requests = 1;
    try {
      if (this.filter) requests = await this.search(asked);
      else if (this.mode === "name") await this.turn(asked);
      else {
        requests = 0;
        const { rooms, complete, trouble } = this.stats.largest;
        const more = allRooms(this.stats) - rooms.length;
        const note = trouble ? "The database does not say which rooms there are now; these are as they were."
          : !complete ? "Still looking through the rooms…" : more > 0 ? `and ${plural(more, "smaller room")}` : "";
        this.draw(rooms, note, null);
      }
    } catch {
      if (asked === this.asked) $("#rooms-note").textContent = "The rooms cannot be listed now.";
    }
    if (asked === this.asked) this.fresh = performance.now() + REFRESH_PAUSE_MS * requests;
  }

  async turn(asked) {
    const { rooms, next } = await page("api/rooms", SHOWN, this.cursors.at(-1));
    if (asked !== this.asked) return;
    const at = this.cursors.length;
    this.draw(rooms, `Page ${count(at)} of ${count(Math.max(at, Math.ceil(allRooms(this.stats) / SHOWN)))}`, next);
  }

  /** The API has no search, so this filters all rooms, up to a limit. */
  async search(asked) {
    const { filter } = this;
    const found = [];
    let after = null, matches = 0, pieces = 0;
    do {
      const { rooms, next } = await page("api/rooms", SEARCH_PAGE, after);
      if (asked !== this.asked) return pieces;
      for (const room of rooms) {
        if (!room.channel_name.toLowerCase().includes(filter)) continue;
        matches++;
        if (found.length < SHOWN) found.push(room);
      }
      after = next;
    } while (++pieces < MAX_SEARCH_PAGES && after);
    const beyond = after ? ` among the first ${count(SEARCH_PAGE * MAX_SEARCH_PAGES)} rooms` : "";
    const shown = matches > found.length ? `, the first ${found.length} shown` : "";
    this.draw(found, `${plural(matches, "match", "matches")}${beyond}${shown}`, null);
    return pieces;
  }

  draw(rooms, note, next) {
    this.next = next;
    this.shown = rooms;
    const most = Math.max(1, ...rooms.map((room) => room.connections));
    const keep = new Set(rooms.map((room) => room.channel_name));
    for (const [name, row] of this.rows) {
      if (keep.has(name)) continue;
      row.remove();
      this.rows.delete(name);
    }
    const body = $("#room-rows");
    rooms.forEach((room, index) => {
      const row = this.rows.get(room.channel_name) ?? this.row(room.channel_name);
      ["connections", "users", "anonymous", "version"].forEach((of, i) => {
        const text = count(room[of]);
        const cell = row.cells[i + 1].lastChild;
        if (cell.textContent !== text) cell.textContent = text;
      });
      row.cells[0].style.backgroundSize = `${(100 * room.connections) / most}% 2px`;
      if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
    });
    $("#rooms-note").textContent = rooms.length ? note : this.filter ? "No room matches." : "No rooms: nobody is connected. They appear here as soon as somebody joins.";
    const paged = this.mode === "name" && !this.filter;
    $("#rooms-more").hidden = !paged || next === null;
    $("#rooms-back").hidden = !paged || this.cursors.length < 2;
    $("#rooms table").hidden = rooms.length === 0;
    this.mark(this.chosen);
  }

  row(name) {
    const button = el("button", "link", el("bdi", "", name));
    button.type = "button";
    button.title = name;
    button.onclick = () => this.choose(name);
    const row = el("tr", "", el("td", "", button), ...["n", "n", "n", "n version"].map((c) => el("td", c, "")));
    for (const cell of [...row.cells].slice(1)) cell.append("");
    row.dataset.room = name;
    this.rows.set(name, row);
    return row;
  }

  /** The counts of a room, if known. */
  find(name) {
    return [...this.shown, ...(this.stats?.largest.rooms ?? [])].find((room) => room.channel_name === name);
  }

  /** Marks the open room. */
  mark(chosen) {
    this.chosen = chosen;
    for (const [name, row] of this.rows) row.classList.toggle("chosen", name === chosen);
  }
}
