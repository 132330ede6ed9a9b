// Numbers over time: rates from counters, big figures, small charts.
import { el } from "./common.js";

const WINDOW_S = { least: 30, most: 300 };
const RATE_S = 5; // over how long a rate is averaged

const total = (leaves) => Object.values(leaves).reduce((sum, n) => sum + n, 0);

/** Whether there are other nodes; then most numbers are those of one node. */
export const isShared = (s) => s.bus.state !== "local";
/** The number of rooms of all nodes. A single node knows it; with several nodes every room is scanned. */
export const allRooms = (s) => (isShared(s) ? (s.largest.all ?? s.rooms) : s.rooms);

/** What is drawn: a value as it is, or the `rate` of a counter. */
export const FIGURES = [
  { id: "rooms", label: "Rooms", of: allRooms, words: (s) => (isShared(s) ? `${count(s.rooms)} known here` : "with somebody in them") },
  { id: "connections", label: "Connections", of: (s) => s.connections, words: (s) => `${count(s.sockets)} sockets open` },
  { id: "users", label: "Users", of: (s) => s.users, words: (s) => `${count(s.presences)} ${isShared(s) ? "known " : ""}presences` },
  { id: "messages", label: "Messages", rate: (s) => s.counters.messages, words: (s, h) => `${speed(h.rate((x) => x.counters.deliveries))} delivered` },
  { id: "joins", label: "Joins", rate: (s) => s.counters.joins, words: (s) => `${count(s.counters.joins)} so far` },
  { id: "leaves", label: "Leaves", rate: (s) => total(s.counters.leaves), words: (s) => `${count(total(s.counters.leaves))} so far` },
];

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const exact = new Intl.NumberFormat("en");
export const count = (n) => (n < 100_000 ? exact.format(n) : compact.format(n));
const short = (rate) => (rate < 0.05 ? "0" : rate < 10 ? rate.toFixed(1).replace(/\.0$/, "") : count(Math.round(rate)));
export const speed = (rate) => `${short(rate)}/s`;

export function span(seconds) {
  const units = [["d", 86_400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) return "0 s";
  const [unit, size] = units[first];
  const [next, nextSize] = units[first + 1] ?? [];
  const rest = nextSize ? Math.floor((seconds % size) / nextSize) : 0;
  return `${Math.floor(seconds / size)} ${unit}${rest && first < 3 ? ` ${rest} ${next}` : ""}`;
}

/** The samples of the last minutes. Their time is the server's own uptime. */
export class History {
  samples = [];

  add(sample) {
    const last = this.samples.at(-1);
    // A restarted server counts from zero again.
    if (last && (last.epoch !== sample.epoch || last.uptime_seconds > sample.uptime_seconds)) this.samples = [];
    if (last?.uptime_seconds === sample.uptime_seconds) this.samples.pop();
    this.samples.push(sample);
    const oldest = sample.uptime_seconds - WINDOW_S.most;
    while (this.samples.length > 2 && this.samples[0].uptime_seconds < oldest) this.samples.shift();
  }

  /** The recent rate of a counter. */
  rate(counter) {
    const last = this.samples.at(-1);
    const first = this.samples.findLast((s) => last.uptime_seconds - s.uptime_seconds >= RATE_S) ?? this.samples[0];
    const seconds = last.uptime_seconds - first.uptime_seconds;
    return seconds > 0 ? (counter(last) - counter(first)) / seconds : 0;
  }

  /** How much of the past a chart shows: up to the window. */
  get span() { return Math.min(Math.max(this.seen, WINDOW_S.least), WINDOW_S.most); }

  /** How long the recorded past is. */
  get seen() { return this.samples.at(-1).uptime_seconds - this.samples[0].uptime_seconds; }

  /** Points [seconds ago, value] for a chart; a rate is since the sample before. */
  series({ of, rate }) {
    const now = this.samples.at(-1).uptime_seconds;
    if (of) return this.samples.map((s) => [now - s.uptime_seconds, of(s)]);
    return this.samples.slice(1).map((s, i) => {
      const before = this.samples[Math.max(i - 1, 0)];
      return [now - s.uptime_seconds, (rate(s) - rate(before)) / (s.uptime_seconds - before.uptime_seconds)];
    });
  }
}

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 200, HEIGHT = 44;

function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** Makes the tiles, and returns a function that draws them. */
export function buildFigures(home) {
  const tiles = FIGURES.map((figure) => {
    const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const area = chart.appendChild(svg("path", { class: "area" }));
    const line = chart.appendChild(svg("path", { class: "line", "vector-effect": "non-scaling-stroke" }));
    const [value, unit, words, peak] = [el("span", "value", "–"), el("span", "unit", figure.rate ? "/s" : ""), el("span", "words"), el("span", "peak")];
    const tile = el("div", "figure", el("h2", "", figure.label), el("p", "", value, unit), el("p", "hint", words), el("div", "chart", peak, chart));
    tile.id = `figure-${figure.id}`;
    home.append(tile);
    return { figure, area, line, value, words, peak };
  });
  return (history) => {
    const sample = history.samples.at(-1);
    for (const { figure, area, line, value, words, peak } of tiles) {
      value.textContent = figure.of ? count(figure.of(sample)) : short(history.rate(figure.rate));
      words.textContent = figure.words(sample, history);
      const points = history.series(figure);
      const most = points.reduce((most, [, y]) => Math.max(most, y), 0);
      peak.textContent = most > 0 ? `peak ${figure.of ? count(most) : speed(most)} in ${span(history.seen)}` : "";
      const x = (ago) => (WIDTH * (1 - Math.min(ago / history.span, 1))).toFixed(1);
      const path = pathOf(points, most, x);
      line.setAttribute("d", path);
      const left = points.length ? x(points[0][0]) : 0;
      area.setAttribute("d", path && `${path}L${WIDTH} ${HEIGHT}L${left} ${HEIGHT}Z`);
    }
  };
}

function pathOf(points, most, x) {
  if (points.length < 2) return "";
  const y = (value) => (HEIGHT - 2 - (HEIGHT - 6) * (most > 0 ? value / most : 0)).toFixed(1);
  return points.map(([ago, value], i) => `${i ? "L" : "M"}${x(ago)} ${y(value)}`).join("");
}
