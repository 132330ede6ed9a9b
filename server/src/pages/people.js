// How users are shown: colours, initials, states. What other clients send is not trusted.

const PALETTE = ["#b91c1c", "#c2410c", "#a16207", "#4d7c0f", "#15803d", "#0f766e",
  "#0369a1", "#1d4ed8", "#4338ca", "#7e22ce", "#a21caf", "#be185d"];
export const STATUS = { available: "Available", away: "Away", busy: "Busy" };

export function colourOf(name) {
  let hash = 0x811c9dc5;
  for (const char of name) hash = Math.imul(hash ^ char.codePointAt(0), 0x01000193) >>> 0;
  return PALETTE[hash % PALETTE.length];
}

export function initials(name) {
  const words = name.split(/[\s._@-]+/u).filter(Boolean).map((word) => [...word]);
  const letters = words.length > 1 ? [words[0][0], words[1][0]] : (words[0] ?? ["?"]).slice(0, 2);
  return letters.join("").toUpperCase();
}

/** Paints an avatar. `info` comes from another client and is not trusted. */
export function paint(avatar, id, info) {
  avatar.className = id === null ? "avatar nobody" : "avatar";
  avatar.textContent = id === null ? "?" : initials(id);
  if (id === null) return avatar.removeAttribute("style");
  const colour = /^#[0-9a-f]{6}$/i.test(info?.color) ? info.color : colourOf(id);
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  avatar.style.background = colour;
  avatar.style.color = r * 0.3 + g * 0.59 + b * 0.11 > 150 ? "#111" : "#fff";
  if (Object.hasOwn(STATUS, info?.status)) avatar.dataset.status = info.status;
  else delete avatar.dataset.status;
}

export const noteOf = (info) => (typeof info?.note === "string" ? info.note.slice(0, 120) : "");
export const statusOf = (info) => (Object.hasOwn(STATUS, info?.status) ? STATUS[info.status] : "");

/** The user in a token, only to mark "you" in the roster; the server verifies the token. */
export function subjectOf(token) {
  try {
    const bytes = Uint8Array.from(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes)).sub ?? null;
  } catch { return null; }
}
