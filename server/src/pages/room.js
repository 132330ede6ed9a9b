// A joined room: its connection, its frames, its pane.
import { $, at, clock, copy, el, plural, recallJson, remember } from "./common.js";
import { STATUS, colourOf, noteOf, paint, statusOf, subjectOf } from "./people.js";
import { MAX, active, clip, countUnread, hashOf, log, rooms, saveRooms, show } from "./tabs.js";

const CONNECT_TIMEOUT_MS = 10_000;
const STABLE_MS = 10_000; // how long a connection is open until the backoff is reset
const BACKOFF_MS = { first: 500, most: 15_000 };
const REFUSALS = 3; // failed handshakes before /healthz is asked why

const CAUSES = {
  left: "left", disconnected: "lost the connection", expired: "went silent for too long",
  replaced: "moved to another connection", kicked: "was removed", slow_consumer: "could not keep up",
  room_closed: "left as the room was closed", node_lost: "went away with a server node",
  shutdown: "left as the server stopped",
};
// After these the client should not reconnect by itself.
const FINAL = {
  1000: "The server ended this connection.",
  1008: "The server ended this connection: it broke a rule, such as sending too fast.",
  4001: "You were removed from this room.",
  4002: "Another connection has taken over this session.",
  4004: "This room was closed.",
};
const PASSING = {
  1001: "The server is going away; reconnecting…", 1009: "That message was too big; reconnecting…",
  1012: "The server is restarting; reconnecting…", 4000: "The server had not heard from us for too long; reconnecting…",
  4003: "This connection was too slow to keep up; reconnecting…",
};

export class Room {
  static made = 0;

  constructor(name, user, token) {
    Object.assign(this, { name, token, me: token ? subjectOf(token) : user || null });
    this.credentials = JSON.stringify([user, token]);
    this.following = true;
    this.members = new Map();
    this.rows = new Map();
    this.unread = this.unlisted = 0;
    this.build(++Room.made);
    this.start();
  }

  build(number) {
    this.pane = $("#room-template").content.firstElementChild.cloneNode(true);
    this.tab = el("button", "tab", el("span", "dot"), el("bdi", "label", `#${this.name}`), el("span", "badge"));
    Object.assign(this.tab, { type: "button", id: `tab-${number}`, title: this.name });
    this.tab.setAttribute("role", "tab");
    this.tab.setAttribute("aria-controls", (this.pane.id = `pane-${number}`));
    this.pane.setAttribute("aria-labelledby", this.tab.id);
    this.tab.onclick = () => show(this);
    const part = (name) => $(`.${name}`, this.pane);
    for (const name of ["pill", "count", "roster", "lurkers", "alone", "notice", "log", "me", "status", "note", "text"]) this[`$${name}`] = part(name);
    this.send = $(".composer button", this.pane);
    $("h2", this.pane).append(el("bdi", "", `#${this.name}`));
    this.$me.hidden = this.me === null;
    this.adopt(this.me === null ? null : recallJson("localStorage", `mood.${this.me}`, {}));
    part("leave").onclick = () => this.leave();
    part("share").onclick = (event) => copy(location.href.split("#")[0] + hashOf(this.name), event.currentTarget);
    part("again").onclick = () => (this.state === "stopped" ? this.start() : this.connect());
    part("composer").onsubmit = (event) => {
      event.preventDefault();
      const text = this.$text.value.trim();
      if (text && this.tell({ type: "message", payload: { text } })) this.$text.value = "";
    };
    this.$me.onsubmit = (event) => { event.preventDefault(); this.setMood(); };
    this.$me.onchange = () => this.setMood();
    this.$log.onscroll = () => { this.following = this.$log.scrollHeight - this.$log.scrollTop - this.$log.clientHeight < 60; };
    new ResizeObserver(() => this.follow()).observe(this.$log);
    $(".tabs").insertBefore(this.tab, $("#tab-join"));
    $("main").append(this.pane);
  }

  // --- the connection

  /** Joins as a new client session, which then survives reconnects. */
  start() {
    this.session = crypto.getRandomValues(new Uint32Array(4)).join("-");
    this.failures = this.refusals = 0;
    this.everOpen = this.greeted = false;
    this.connect();
  }

  address() {
    const query = { presence: "diff", session: this.session, info: JSON.stringify(this.info) };
    if (this.token) query.token = this.token;
    else if (this.me !== null) query.user = this.me;
    return at(`ws/${encodeURIComponent(this.name)}?${Object.entries(query).map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&")}`);
  }

  connect() {
    clearTimeout(this.timer);
    this.version = null;
    this.show("connecting", this.everOpen ? "reconnecting…" : "connecting…");
    const address = this.address();
    const ws = (this.ws = new WebSocket(address.href.replace(/^http/, "ws")));
    let opened = false;
    const timeout = setTimeout(() => ws.close(), CONNECT_TIMEOUT_MS);
    log(this, "meta", `GET ${(address.pathname + address.search).replace(/token=[^&]*/, "token=…")}`);
    ws.onopen = () => {
      if (this.ws !== ws) return;
      clearTimeout(timeout);
      opened = this.everOpen = true;
      this.refusals = 0;
      this.stable = setTimeout(() => { this.failures = 0; }, STABLE_MS);
      this.show("open", "live");
    };
    ws.onmessage = ({ data }) => {
      if (this.ws !== ws) return;
      log(this, "in", String(data));
      let frame;
      try { frame = JSON.parse(data); } catch { return; }
      this.receive(frame ?? {});
    };
    ws.onclose = ({ code, reason }) => {
      clearTimeout(timeout);
      if (this.ws !== ws) return;
      log(this, "meta", `closed ${code} ${reason}`.trim());
      if (FINAL[code]) this.stop(reason ? FINAL[code].replace(/\.$/, ` (${reason}).`) : FINAL[code], "Join again");
      else this.retry(PASSING[code] ?? (opened || this.everOpen ? "The connection was lost; reconnecting…" : ""), !opened);
    };
  }

  drop(code, reason) {
    const ws = this.ws;
    this.ws = null;
    clearTimeout(this.timer);
    clearTimeout(this.stable);
    ws?.close(code, reason);
  }

  retry(why, refused) {
    this.drop();
    const ceiling = Math.min(BACKOFF_MS.most, BACKOFF_MS.first * 2 ** this.failures++);
    this.show("waiting", this.everOpen ? "reconnecting…" : "connecting…");
    if (why) this.notify(why, "Try now");
    this.timer = setTimeout(() => this.connect(), Math.random() * ceiling);
    if (refused && ++this.refusals >= REFUSALS) this.diagnose();
  }

  stop(why, button) {
    this.drop();
    this.members.clear();
    this.lurkers = this.unlisted = 0;
    this.show("stopped", "not connected");
    this.draw();
    this.notify(why, button, true);
    if (this.greeted) this.line("", why);
  }

  /** A browser does not say why a handshake failed: ask the server over HTTP. */
  async diagnose() {
    const session = this.session;
    const get = (url) => fetch(url, { cache: "no-store", signal: AbortSignal.timeout(5000) });
    const healthy = await get(at("healthz")).then((answer) => answer.ok, () => false);
    const stale = () => rooms.get(this.name) !== this || this.session !== session || this.state === "open" || this.state === "stopped";
    if (stale()) return;
    if (!healthy) return this.notify("The server cannot be reached. Trying again…", "Try now");
    // Without the upgrade the same address is often refused for the same reason, as JSON.
    const words = await get(this.address()).then(async (answer) =>
      ([401, 403, 503].includes(answer.status) ? (await answer.json()).error.message : ""), () => "").catch(() => "");
    if (stale()) return;
    const why = `The server is up but refused this name, room or token${words ? `: ${words.replace(/\.$/, "")}` : ""}.`;
    if (this.everOpen) this.notify(`${why} Trying again…`, "Try now");
    else this.stop(why, "Try again");
  }

  raw(text) {
    if (this.ws?.readyState !== WebSocket.OPEN) return false;
    this.ws.send(text);
    log(this, "out", text);
    return true;
  }

  tell(frame) { return this.raw(JSON.stringify(frame)); }

  beat() { this.raw('"heartbeat"'); }

  /** The network or the user is back: reconnect without a delay. */
  wake() {
    if (this.state === "waiting") this.connect();
    else this.beat();
  }

  leave() {
    this.drop(1000);
    rooms.delete(this.name);
    this.tab.remove();
    this.pane.remove();
    saveRooms();
    show([...rooms.values()].pop() ?? null);
    $("[role=tab][aria-selected=true]").focus();
  }

  /**
   * The server shows the info of a user's newest connection, whichever tab that
   * is: so a status belongs to the name, and all rooms and tabs with it follow.
   */
  setMood() {
    const mood = { status: this.$status.value, note: this.$note.value.trim() };
    remember("localStorage", `mood.${this.me}`, JSON.stringify(mood));
    for (const room of rooms.values()) if (room.me === this.me) room.adopt(mood);
  }

  adopt(mood) {
    const info = mood === null ? {} : { color: colourOf(this.me), status: Object.hasOwn(STATUS, mood.status) ? mood.status : "available" };
    if (noteOf(mood)) info.note = noteOf(mood);
    this.$status.value = info.status ?? "";
    this.$note.value = info.note ?? "";
    if (JSON.stringify(info) === JSON.stringify(this.info)) return;
    this.info = info; // also for the next connection
    this.tell({ type: "update", info });
  }

  // --- frames

  receive({ type, payload, from = null, event }) {
    if (type === "presence_state") this.reset(payload);
    else if (type === "presence_diff") this.apply(payload);
    else if (type === "presence_count") this.tally(payload);
    else if (type === "message") this.message(payload, from, event);
    else if (type === "error") this.line("fault", String(payload?.message ?? "The server reported an error."), el("code", "tag", String(payload?.code)));
  }

  greet() {
    if (this.greeted) return false;
    this.greeted = true;
    this.line("", this.me === null ? "You are here as a lurker: the others see a number, not a name." : "You joined.");
    return true;
  }

  /** The list is too large: the server sends only counts until it is small enough again. */
  tally({ users, lurkers, version }) {
    this.members.clear();
    Object.assign(this, { lurkers, version, unlisted: users });
    this.greet();
    this.draw();
  }

  reset({ members, lurkers, version }) {
    const before = this.members;
    const knewThem = this.unlisted === 0;
    this.members = new Map(members.map((member) => [member.id, member]));
    Object.assign(this, { lurkers, version, unlisted: 0 });
    if (!this.greet() && knewThem) {
      for (const id of before.keys()) if (!this.members.has(id)) this.line("", el("bdi", "", id), "left while we were away");
      for (const id of this.members.keys()) if (!before.has(id)) this.line("", el("bdi", "", id), "is here");
    }
    if (this.me !== null && !this.members.has(this.me)) this.line("fault", "The server did not take the name", el("bdi", "", this.me), "and lists you without it.");
    this.draw();
  }

  apply({ since, version, joins, leaves, lurkers }) {
    if (since !== this.version) {
      // Not 1000, which would mean a leave: the session goes on.
      this.drop(3000, "resync");
      return this.retry("A change was missed; fetching the roster afresh…", false);
    }
    Object.assign(this, { version, lurkers });
    for (const member of joins) {
      const before = this.members.get(member.id);
      this.members.set(member.id, member);
      if (!before) this.line("", el("bdi", "", member.id), "joined");
      else if (statusOf(member.info) && statusOf(before.info) !== statusOf(member.info)) {
        this.line("", el("bdi", "", member.id), `is now ${statusOf(member.info).toLowerCase()}`);
      }
    }
    for (const { id, cause } of leaves) {
      this.members.delete(id);
      this.line("", el("bdi", "", id), CAUSES[cause] ?? "left", ...(cause && cause !== "left" ? [el("code", "tag", String(cause))] : []));
    }
    this.draw();
  }

  message(payload, from, event) {
    const id = from?.id ?? null;
    const sender = from === null ? "server" : id ?? `lurker ${String(from.connection).slice(-4)}`;
    const key = JSON.stringify([from?.connection ?? null, id]);
    const now = Date.now();
    const follows = this.last?.key === key && now - this.last.at < 120_000 && event === undefined;
    const plain = payload && typeof payload.text === "string" && Object.keys(payload).length === 1;
    const body = el(plain ? "div" : "pre", "body", clip(plain ? payload.text : JSON.stringify(payload, null, 1) ?? "null"));
    body.dir = plain ? "auto" : "ltr";
    const avatar = el("span", "");
    paint(avatar, id, this.members.get(id)?.info);
    delete avatar.dataset.status; // a message keeps the avatar, not the status
    if (from === null) avatar.textContent = "⚙";
    avatar.ariaHidden = "true";
    const by = el("div", "by", el("bdi", "", sender), " ");
    if (id !== null && id === this.me) by.append(el("span", "tag", "you"), " ");
    if (event !== undefined) by.append(el("code", "tag", String(event)), " ");
    by.append(clock());
    this.append(el("div", follows ? "msg cont" : "msg", avatar, by, body));
    this.last = { key, at: now };
    if (active !== this || document.hidden) {
      this.unread++;
      countUnread();
    }
  }

  // --- drawing

  line(className, ...content) {
    const spaced = [...content, clock()].flatMap((part) => [part, " "]); // for screen readers and for copying
    this.append(el("div", `sys ${className}`.trim(), ...spaced));
    this.last = null;
  }

  append(node) {
    const log = this.$log;
    // The hint stays until the first message.
    if (node.classList.contains("msg")) $(".empty", log)?.remove();
    const hint = $(".empty", log);
    log.insertBefore(node, hint);
    while (log.childElementCount > MAX.lines) log.firstElementChild.remove();
    this.follow();
  }

  follow() {
    if (this.following) this.$log.scrollTop = this.$log.scrollHeight;
  }

  show(state, words) {
    this.state = this.tab.dataset.state = this.pane.dataset.state = this.$pill.dataset.state = state;
    this.$pill.textContent = words;
    this.send.disabled = state !== "open";
    if (state === "open") this.$notice.hidden = true;
  }

  notify(text, button, bad = false) {
    $("p", this.$notice).textContent = text;
    $("button", this.$notice).textContent = button;
    this.$notice.classList.toggle("bad", bad);
    this.$notice.hidden = false;
  }

  draw() {
    const order = new Intl.Collator().compare;
    const ids = [...this.members.keys()].sort((a, b) => (b === this.me) - (a === this.me) || order(a, b));
    const shown = ids.slice(0, MAX.roster);
    const keep = new Set(shown);
    for (const [id, row] of this.rows) {
      if (keep.has(id)) continue;
      this.rows.delete(id);
      row.removeAttribute("data-id");
      row.classList.add("leaving");
      setTimeout(() => row.remove(), 250);
    }
    let previous = null;
    for (const id of shown) {
      const row = this.rows.get(id) ?? this.row(id);
      this.fill(row, this.members.get(id));
      // Moving a node restarts its animation, so move only nodes that are out of place.
      let next = previous ? previous.nextElementSibling : this.$roster.firstElementChild;
      while (next?.classList.contains("leaving")) next = next.nextElementSibling;
      if (next !== row) this.$roster.insertBefore(row, next);
      previous = row;
    }
    const hidden = ids.length - shown.length;
    const lurkers = this.lurkers || 0;
    const people = ids.length || this.unlisted;
    this.$count.textContent = people ? plural(people, "person", "people") : "";
    this.$lurkers.textContent = "";
    if (lurkers || hidden) {
      const words = [hidden && `${hidden} more`, lurkers && plural(lurkers, "lurker") + (this.me === null ? ", one is you" : "")];
      const face = el("span", "avatar nobody", "?");
      face.ariaHidden = "true";
      this.$lurkers.append(face, words.filter(Boolean).join(" and "));
    }
    const alone = people + lurkers === 1;
    this.$alone.textContent = this.state === "stopped" ? "We cannot see who is here." : this.unlisted ? "Too many to list: we see how many are here, not who." : alone ? "Only you so far. Share the link, or open it in a second window." : "";
  }

  row(id) {
    const row = el("li", "member", el("span", "avatar"), el("div", "who", el("bdi", "id", id), el("span", "says")), el("span", "tags"));
    row.dataset.id = id;
    row.firstChild.ariaHidden = "true";
    this.rows.set(id, row);
    return row;
  }

  fill(row, { id, info, connections }) {
    paint(row.firstChild, id, info);
    const note = noteOf(info);
    $(".says", row).textContent = [statusOf(info), note].filter(Boolean).join(" · ");
    row.title = note ? `${id}: ${note}` : id;
    $(".tags", row).replaceChildren(
      ...(connections > 1 ? [el("span", "tag", plural(connections, "tab"))] : []), " ",
      ...(id === this.me ? [el("span", "tag", "you")] : []));
  }
}
