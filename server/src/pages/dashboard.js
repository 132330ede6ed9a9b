// The page at /dashboard: reads the live feed while the page is visible, and shows it.
import { $, el, plural } from "./common.js";
import { Refused, hasKey, listen, useKey } from "./api.js";
import { Detail } from "./detail.js";
import { History, buildFigures, count, isShared, span, speed } from "./figures.js";
import { Listing } from "./listing.js";

const RETRY_MS = 3000;

const CAUSES = {
  left: "left", disconnected: "lost connection", expired: "silent too long", replaced: "replaced",
  kicked: "kicked", slow_consumer: "too slow", room_closed: "room closed", node_lost: "node lost", shutdown: "server stopped",
};
const HEALTH = {
  ready: ["open", "ready"],
  degraded: ["waiting", "degraded"],
  closing: ["stopped", "closing"],
};
const DATABASE = {
  locked: "somebody else holds its lock", full: "the disk is full", read_only: "it is read-only",
  gone: "the file is gone", unavailable: "it cannot be reached", corrupt: "it is damaged",
  schema: "its tables are not as they should be", lapsed: "the others have taken this node for dead",
  name_taken: "another process has this node's name", panicked: "the writer failed", closed: "the writer has stopped",
};

const history = new History();
const drawFigures = buildFigures($("#figures"));
const detail = new Detail();
const listing = new Listing((room) => { location.hash = encodeURIComponent(room); });

let timer = null;
let feed = null; // aborts the feed that is being read
let latest = null; // when its last event came

// --- reading the feed

async function read() {
  clearTimeout(timer);
  feed?.abort();
  feed = null;
  if (document.hidden) return;
  const mine = (feed = new AbortController());
  try {
    await listen("api/stats/live", mine.signal, (stats) => {
      if (mine !== feed) return;
      latest = new Date();
      show(stats);
    });
  } catch (problem) {
    if (mine !== feed) return;
    if (!(problem instanceof Refused)) throw problem;
    if (problem.status === 401 || problem.status === 403) return refuse(problem);
    const since = latest ? ` The numbers are of ${latest.toLocaleTimeString()}.` : "";
    $("#trouble").textContent = `${problem.message.replace(/\.$/, "")}. Trying again…${since}`;
    $("#trouble").hidden = false;
    setHealth("stopped", "no answer");
    document.body.classList.add("stale");
  }
  timer = setTimeout(read, RETRY_MS);
}

/** The feed is refused: shows why, and asks for the key if one would help. */
function refuse({ status, code, message }) {
  const wantsKey = status === 401;
  const words = {
    401: "This server has an API key. The dashboard shows who is where, so it asks for the same key.",
    loopback_only: "Without an API key the server shows its numbers only to its own machine, and this request came from elsewhere or through a proxy. Start the server with --api-key KEY and open the dashboard again, or open it on the machine itself at http://127.0.0.1.",
    foreign_origin: "This page is on another host than the server it asks. Name its origin with --allow-origin, and give the server an --api-key.",
  };
  $("#gate h2").textContent = wantsKey ? "This dashboard is locked" : "Not from here";
  $("#gate .words").textContent = words[status] ?? words[code] ?? message;
  $("#gate .key").hidden = !wantsKey;
  $("#again").hidden = wantsKey;
  $("#key-error").textContent = wantsKey && hasKey() ? "The server does not take this key." : "";
  setHealth("waiting", wantsKey ? "locked" : "refused");
  swap(true);
  if (wantsKey) $("#key").focus();
}

function swap(refused) {
  $("#gate").hidden = !refused;
  $("#live").hidden = refused;
  $("#trouble").hidden = true;
  $("#facts").hidden = refused;
  document.body.classList.remove("stale");
}

// --- showing

function setHealth(state, words) {
  $("#health").dataset.state = state;
  if ($("#health").textContent !== words) $("#health").textContent = words;
}

function say(id, state, strong, words) {
  const card = $(id);
  card.dataset.state = state;
  $("strong", card).textContent = strong;
  $("span", card).textContent = words;
}

function show(stats) {
  swap(false);
  history.add(stats);
  setHealth(...(HEALTH[stats.status] ?? ["waiting", stats.status]));
  drawFigures(history);
  const { database, counters } = stats;
  const rows = `${count(database.unwritten)} waiting · ${speed(history.rate((s) => s.counters.rows_written))} written`;
  if (database.state === "ok") say("#state-database", "good", "Takes rows", rows);
  else {
    const why = DATABASE[database.state] ?? database.state;
    say("#state-database", "bad", "Takes no rows", `for ${span(database.lag_seconds)}: ${why} · ${plural(database.unwritten, "row")} waiting. Presence goes on.`);
  }
  const word = { ready: ["good", "Ready"], degraded: ["wait", "Degraded"], closing: ["bad", "Closing"] }[stats.status] ?? ["wait", stats.status];
  const { bus } = stats;
  const shared = isShared(stats);
  const nodes = !shared ? "one node" : bus.state === "ok" ? `one of ${plural(bus.nodes, "node")}` : `does not hear the other nodes: ${bus.state}`;
  const unheard = stats.unheard.map(({ node, seconds }) => ` · ${node} is not heard for ${span(seconds)}`);
  say("#state-server", ...word, `up ${span(stats.uptime_seconds)} · ${nodes}${unheard.join("")}`);
  say("#state-sent", "", `${speed(history.rate((s) => s.counters.lists_sent))} presence lists`, `${speed(history.rate((s) => s.counters.deliveries))} deliveries · ${count(counters.deliveries)} so far`);
  drawLeaves(counters.leaves);
  $("#scope").hidden = !shared;
  $("#scope").textContent = shared ? `The rooms are those of all nodes; the other numbers are those of node ${stats.node}.` : "";
  detail.shared = shared;
  $("#node").textContent = stats.node;
  $("#node").title = `node ${stats.node}`;
  $("#facts").textContent = `epoch ${stats.epoch}`;
  listing.take(stats).then(() => {
    const room = listing.find(detail.room);
    if (room) detail.count(room);
  });
  detail.refresh(false);
}

function drawLeaves(leaves) {
  const causes = Object.entries(leaves).filter(([, n]) => n > 0).sort(([, a], [, b]) => b - a);
  const all = causes.reduce((sum, [, n]) => sum + n, 0);
  const state = JSON.stringify(causes);
  const bar = $("#state-leaves .bar");
  if (bar.dataset.drawn === state) return;
  bar.dataset.drawn = state;
  bar.setAttribute("aria-label", causes.map(([cause, n]) => `${CAUSES[cause] ?? cause}: ${n}`).join(", ") || "nobody has left");
  bar.replaceChildren(...causes.map(([cause, n]) => {
    const part = el("span", `cause-${cause}`);
    part.style.flexGrow = n / all;
    return part;
  }));
  const entry = ([cause, n]) => el("li", "", el("span", `dot cause-${cause}`), `${CAUSES[cause] ?? cause} `, el("b", "", count(n)));
  $("#state-leaves .legend").replaceChildren(...(all ? causes.map(entry) : [el("li", "", "Nobody has left yet.")]));
}

// --- the page

function follow() {
  let room;
  try { room = decodeURIComponent(location.hash.slice(1)); } catch { room = ""; }
  detail.open(room || null);
  listing.mark(room || null);
  document.title = room ? `${room} · presence dashboard` : "presence: dashboard";
}

$("#gate").onsubmit = (event) => {
  event.preventDefault();
  useKey($("#key").value.trim());
  $("#key").value = "";
  read();
};
$("#again").onclick = read;
$("#detail-close").onclick = () => { location.hash = ""; };
addEventListener("hashchange", follow);
document.addEventListener("visibilitychange", read);
follow();
read();
