// @ts-check
/**
 * The box with the messages on the page /test-chat/{room}/: what is said, what is under way, and the ways to
 * older and to the newest messages. Owns that part of the DOM; what to show it is told by test-chat.js.
 * Text of users reaches the document through textContent only.
 *
 * @import {History, Message, User, Welcome} from "./chat-types.js"
 */
import { make, part } from "./dom.js";
import { linked } from "./links.js";

// Enough to read back; more would make the page slow. What is older is on the server, a button away.
const SHOWN_MOST = 1_000;
const READING_MOST = 5_000; // What somebody reads is not taken from under their eyes so soon.
const OLDER_PAGE = 50;
const AT_BOTTOM_PX = 48; // This near to the end counts as reading the newest.

const log = part("log", HTMLElement);
const past = part("past", HTMLElement);
const confirmed = part("confirmed", HTMLElement);
const outbox = part("outbox", HTMLElement);
const older = part("older", HTMLButtonElement);
const newer = part("newer", HTMLButtonElement);
const nothing = part("nothing", HTMLElement);

const { userId, userName = "" } = part("chat", HTMLElement).dataset;
/** Who reads this page. @type {User} */
const me = { id: Number(userId), name: userName };
/** The messages in the page by seq, without gaps. @type {Map<number, HTMLElement>} */
const shown = new Map();
/** Messages of this page that are not in the log yet, by id. @type {Map<string, HTMLElement>} */
const pending = new Map();
let first = Infinity; // Seq of the oldest message in the page; Infinity: there is none.
let begin = Infinity; // Seq of the oldest message in the log; Infinity: not known.
let silent = false; // Nobody had said anything when we came.

/** Begins, with each connection. @param {Welcome} welcome */
export function welcomed(welcome) {
  Object.assign(me, welcome.user);
  begin = welcome.first_seq;
  silent = welcome.last_seq === 0;
  if (!welcome.resumed) {
    shown.clear();
    past.replaceChildren();
    confirmed.replaceChildren();
    first = Infinity;
    following = true;
    newer.hidden = true;
  }
  sayMore();
}

// One message.

const timeOnly = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const dayAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** @param {Date} when */
function timeOf(when) {
  const today = when.toDateString() === new Date().toDateString();
  const time = make("time", "", (today ? timeOnly : dayAndTime).format(when));
  time.setAttribute("datetime", when.toISOString());
  time.title = dayAndTime.format(when);
  return time;
}

/** @param {string} className  @param {string} name  @param {HTMLElement} when  @param {string} text */
function bubble(className, name, when, text) {
  const element = make("article", className);
  const head = make("header");
  const sender = make("span", "sender", name);
  sender.dir = "auto";
  head.append(sender, " ", when);
  const words = make("p", "text");
  words.dir = "auto";
  words.append(...linked(text));
  element.append(head, words);
  return element;
}

/** @param {Message} message */
function messageOf({ sender, sent_at, text, redacted }) {
  const className = sender.id === me.id ? "message own" : "message";
  const element = bubble(className, sender.name, timeOf(new Date(sent_at)), text);
  if (redacted) takeAway(element);
  return element;
}

/** @param {HTMLElement} element */
function takeAway(element) {
  element.querySelector(".text")?.replaceWith(make("p", "text gone", "This text was removed."));
}

/** @param {number} seq */
export function redact(seq) {
  const element = shown.get(seq);
  if (element) takeAway(element);
}

// What is said.

// Who reads the newest goes on doing so when messages come, or when the log's box changes its size.
let following = true;

function follow() {
  if (following) log.scrollTop = log.scrollHeight;
}

let height = 0; // Of the box, when we last heard of it.

log.addEventListener("scroll", () => {
  // A box that just became smaller, as the field below grew, is not somebody who leaves the end.
  if (log.clientHeight !== height) return;
  following = log.scrollHeight - log.scrollTop - log.clientHeight < AT_BOTTOM_PX;
  if (following) newer.hidden = true;
});
new ResizeObserver(() => {
  height = log.clientHeight;
  follow();
}).observe(log);

newer.addEventListener("click", () => {
  log.focus(); // The button goes away, and must not take the focus with it.
  following = true;
  follow();
});

/** Changes what is above, and leaves what is in sight where it is. @param {() => void} change */
function above(change) {
  const left = log.scrollHeight - log.scrollTop;
  change();
  log.scrollTop = log.scrollHeight - left;
}

/** Says what is there besides messages: more of them, or none at all. */
function sayMore() {
  const more = first !== Infinity && first > begin;
  if (!more && document.activeElement === older) log.focus({ preventScroll: true });
  older.hidden = !more;
  nothing.hidden = !silent || shown.size + pending.size > 0;
}

/** @param {Message[]} messages  @param {HTMLElement} place  @param {"append" | "prepend"} where */
function put(messages, place, where) {
  const added = messages.filter(({ seq }) => !shown.has(seq));
  for (const message of added) {
    shown.set(message.seq, messageOf(message));
    first = Math.min(first, message.seq);
  }
  place[where](...added.map(({ seq }) => /** @type {HTMLElement} */ (shown.get(seq))));
}

/** @param {number} most */
function trim(most) {
  for (; shown.size > most; first++) {
    shown.get(first)?.remove();
    shown.delete(first);
  }
}

/** Shows new messages. @param {Message[]} messages */
export function show(messages) {
  for (const { id, sender } of messages) if (sender.id === me.id) forget(id);
  put(messages, confirmed, "append");
  const most = following ? SHOWN_MOST : READING_MOST;
  if (shown.size > most) above(() => trim(most));
  newer.hidden = following;
  sayMore();
  follow();
}

/** Puts a page of older messages above. @param {(before: number, limit: number) => Promise<History>} ask */
async function showOlder(ask) {
  const { messages, more } = await ask(first, OLDER_PAGE);
  above(() => {
    // Into a place of their own, which is not read out: only what is new is told to who cannot see it.
    put(messages, past, "prepend");
    if (!more) begin = first;
    sayMore();
  });
}

/**
 * Sets where older messages come from, and who is told why none came ("": now they did).
 * @param {(before: number, limit: number) => Promise<History>} ask  @param {(words: string) => void} tell
 */
export function olderFrom(ask, tell) {
  let [asking, failed] = [false, false];
  older.addEventListener("click", async () => {
    if (asking) return;
    asking = true;
    try {
      await showOlder(ask);
      if (failed) tell("");
      failed = false;
    } catch (error) {
      failed = true;
      tell(`Older messages did not come. ${error instanceof Error ? error.message : error}`);
    }
    asking = false;
  });
}

// What is under way.

/** @param {string} id  @param {string} text */
export function showPending(id, text) {
  const element = bubble("message own pending", me.name, make("span", "fate", "Sending…"), text);
  pending.set(id, element);
  outbox.append(element);
  sayMore();
  following = true;
  follow();
}

/** @param {string} id */
export function forget(id) {
  pending.get(id)?.remove();
  pending.delete(id);
  sayMore();
}

/** @param {string} id  @param {string} words  @param {boolean} [failed] */
export function tellFate(id, words, failed = false) {
  const element = pending.get(id);
  element?.classList.toggle("failed", failed);
  element?.querySelector(".fate")?.replaceChildren(words);
}

/** Takes out all that is under way, and returns the texts. */
export function takeOut() {
  const texts = Array.from(pending.values(), (element) => element.querySelector(".text")?.textContent ?? "");
  for (const id of [...pending.keys()]) forget(id);
  return texts;
}
