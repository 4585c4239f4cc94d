// @ts-check
/**
 * The scrolling of the box with the messages: whoever reads the newest goes on doing so, and nothing moves under
 * the eyes of whoever reads what is older. Owns the box's position; what is in the box is conversation.js's.
 */
import { part } from "./dom.js";

const AT_END_PX = 48; // This near to the end counts as reading the newest.
const STILL_PX = 2; // Positions are fractions; this much is no movement.
// Browsers scroll smoothly, and what a key or a finger has begun goes on after the script has gone to the end.
const [MOVING_MS, HOLD_MS] = [1_000, 500];

const log = part("log", HTMLElement);

let following = true;
let height = 0; // Of the box, when we last heard of it.
let top = 0; // Where the box was when we last looked or moved it.
let actedAt = -Infinity; // When somebody last scrolled by hand, in ms since the page began.
let heldUntil = -Infinity; // Until when the box is held at its end.
/** @type {() => void} */
let tell = () => {};

const toGo = () => log.scrollHeight - log.scrollTop - log.clientHeight;

/** Whether the end is in sight, and stays there when something is added. */
export const atEnd = () => following;

/** Sets who is told when somebody has scrolled. @param {() => void} listener */
export function onScroll(listener) {
  tell = listener;
}

/** Shows the end, to whoever is there. */
export function follow() {
  if (!following) return;
  log.scrollTop = log.scrollHeight;
  top = log.scrollTop;
}

/** Shows the end, whatever the box is doing. */
export function toEnd() {
  const now = performance.now();
  if (now - actedAt < MOVING_MS) heldUntil = now + HOLD_MS;
  following = true;
  follow();
}

/** Something was added below, and is not to be followed. */
export function stay() {
  following = toGo() < AT_END_PX;
}

/** Changes what is above, and leaves what is in sight where it is. @param {() => void} change */
export function steady(change) {
  const left = log.scrollHeight - log.scrollTop;
  change();
  log.scrollTop = log.scrollHeight - left;
  top = log.scrollTop;
}

log.addEventListener("scroll", () => {
  // A box that just became smaller, as the field below grew, is not somebody who leaves the end.
  if (log.clientHeight !== height) return;
  // Up by a little is enough to leave: in a busy room the next message would take the reader back.
  const up = log.scrollTop < top - STILL_PX;
  if (up && performance.now() < heldUntil) return follow();
  top = log.scrollTop;
  following = toGo() < (up ? STILL_PX : AT_END_PX);
  tell();
}, { passive: true });

for (const act of ["wheel", "touchmove", "pointerdown", "keydown"]) {
  log.addEventListener(act, () => {
    actedAt = performance.now();
    heldUntil = -Infinity;
  }, { passive: true });
}

new ResizeObserver(() => {
  height = log.clientHeight;
  follow();
}).observe(log);
