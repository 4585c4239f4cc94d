// @ts-check
/**
 * Messages of this page that are not in the log yet: under way, or not sent and why, with a way to try again.
 * Owns the end of the box with the messages; repeating what is under way is the client's.
 */
import { draftOf } from "./bubble.js";
import { button, make, part, takeFocus } from "./dom.js";
import { say } from "./texts.js";

const place = part("outbox", HTMLElement);
const field = part("message", HTMLTextAreaElement);

/**
 * In the order of sending, by id. `seq`: where it is in the log; Infinity: not known to be there.
 * @type {Map<string, {text: string, failed: boolean, seq: number, element: HTMLElement}>}
 */
const drafts = new Map();
let ended = false;

export const count = () => drafts.size;

/** @param {string} id  @param {string} text */
export function add(id, text) {
  if (drafts.has(id)) return;
  const element = draftOf(text, make("span", "fate", say("Sending…")));
  drafts.set(id, { text, failed: false, seq: Infinity, element });
  place.append(element);
}

/** It is stored, and comes with the others in a moment. @param {string} id  @param {number} seq */
export function stored(id, seq) {
  const draft = drafts.get(id);
  if (!draft) return;
  draft.seq = seq;
  draft.element.querySelector(".fate")?.replaceChildren(say("Sent"));
}

/** Messages up to here do not come any more: they are in the page, or in what lies above it. @param {number} last */
export function forgetTo(last) {
  for (const [id, { seq }] of drafts) if (seq <= last) forget(id);
}

/**
 * It was refused.
 * @param {string} id  @param {(text: string) => boolean} send tells whether it went out again
 * @param {() => void} changed with each change of what is refused
 */
export function refused(id, send, changed) {
  const draft = drafts.get(id);
  if (!draft || draft.failed) return;
  const { element, text } = draft;
  draft.failed = true;
  element.classList.add("failed");
  element.querySelector(".fate")?.replaceChildren(say("Not sent"));
  const actions = make("div", "actions");
  const leave = () => {
    forget(id);
    changed();
  };
  actions.append(button(say("Try again"), () => send(text) && leave()), button(say("Remove"), leave));
  element.append(actions);
  changed();
}

/** @param {string} id */
export function forget(id) {
  const draft = drafts.get(id);
  if (!draft) return;
  takeFocus(draft.element, field);
  draft.element.remove();
  drafts.delete(id);
}

/** Nothing is sent any more before the page is opened again. */
export function end() {
  ended = true;
  for (const { failed, element } of drafts.values()) {
    if (!failed) element.querySelector(".fate")?.replaceChildren(say("Not sent yet"));
  }
}

/** What would be lost with the page, or may be. */
export function left() {
  return Array.from(drafts, ([id, { text, failed }]) => ({ id, text, failed })).filter(({ failed }) => failed || ended);
}
