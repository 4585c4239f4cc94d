// @ts-check
/**
 * The panel "Frames" of the page /test-chat/{room}/: what went over the socket, newest last, for debugging.
 * Frames are kept here and put into the page only while the panel is open, so that they cost nothing else.
 */

import { say } from "./texts.js";

// As many as one reads; a catch-up frame may hold 256 KiB, of which the first characters are enough.
const FRAMES_MOST = 200;
const TEXT_MOST = 2_000;

const panel = /** @type {HTMLDetailsElement} */ (document.getElementById("frames-panel"));
const list = /** @type {HTMLElement} */ (document.getElementById("frames"));
/** @type {string[]} */
const lines = [];

/** @param {"in" | "out"} direction  @param {string} text */
export function noteFrame(direction, text) {
  const rest = text.length > TEXT_MOST ? `… ${say("({n} characters)", { n: text.length })}` : "";
  const arrow = direction === "in" ? "←" : "→";
  lines.push(`${new Date().toLocaleTimeString()} ${arrow} ${text.slice(0, TEXT_MOST)}${rest}`);
  if (lines.length > FRAMES_MOST) lines.shift();
  if (panel.open) put(lines.slice(-1));
}

/** @param {string[]} added */
function put(added) {
  for (const line of added) list.append(Object.assign(document.createElement("li"), { textContent: line }));
  while (list.childElementCount > FRAMES_MOST) list.firstElementChild?.remove();
  list.scrollTop = list.scrollHeight;
}

panel.addEventListener("toggle", () => {
  list.replaceChildren();
  if (panel.open) put(lines);
});
