// @ts-check
/**
 * The box with the messages: a window on the room's log, without gaps, that slides both ways and is bounded.
 * Owns which messages are in the page, and the lines between them; what came is told by test-chat.js, what one
 * message looks like is bubble.js's, what has been read is reading.js's.
 *
 * @import {Ack, History, Message, Welcome} from "./chat-types.js"
 * @typedef {{message: Message, element: HTMLElement}} Entry the element holds the lines above the message, too
 */
import { gone, me, messageOf, setOff } from "./bubble.js";
import { make, part, takeFocus } from "./dom.js";
import * as outbox from "./outbox.js";
import { atEnd, follow, onScroll, stay, steady, toEnd } from "./scroll.js";
import { say } from "./texts.js";

const SHOWN_MOST = 1_000; // Enough to read back in; more would make the page slow.
const PAGE = 50; // Messages asked for at once.
const KEPT = SHOWN_MOST - PAGE; // Taken out many at a time, as each time all the others move.
const BATCH_MOST = 50; // Built in one piece of work: some ms, so that typing is not held up.
const BATCH_MS = 500; // The longest wait for a picture to be drawn; browsers draw none of a hidden page.
const AHEAD_PX = 400; // What is this near to being in sight is asked for.

const log = part("log", HTMLElement);
const past = part("past", HTMLElement);
let confirmed = part("confirmed", HTMLElement);
const older = part("older", HTMLButtonElement);
const later = part("later", HTMLElement);
const nothing = part("nothing", HTMLElement);

/** What is in the page, by seq: all from `first` to `last`. @type {Map<number, Entry>} */
const shown = new Map();
let [first, last] = [Infinity, 0];
let head = 0; // Seq of the newest message that came.
let begin = Infinity; // Seq of the oldest message in the log; Infinity: not known.
let silent = false; // Nobody had said anything when we came.
let quietTo = 0; // Up to here all was said before we came, and is not read out.
let atHead = true; // Whether the window reaches to the newest; else those that come are left in the log.
/** What came and is not in the page yet. @type {Message[]} */
let queue = [];
/** Blocks of what is not read out, oldest first: `past`, and what was new once. */
let quiet = [past];
let unreadFrom = 0; // The seq above which the line "New messages" stands; 0: none.
let [frame, timer] = [0, 0];

/**
 * Where older messages come from; who is told why none came ("": now they did), and that what is in sight may
 * have changed.
 * @typedef {{history: (before: number, limit: number) => Promise<History>, connected: () => boolean,
 *   complain: (words: string) => void, changed: () => void}} Others
 * @type {Others}
 */
let others;

/** @param {Others} given */
export function start(given) {
  others = given;
  onScroll(tell);
}

const tell = () => others.changed();

/** Whether new messages come into sight by themselves. */
export const isFollowing = () => atHead && atEnd();

/** Whether the newest message is in the page and in sight. */
export const showsNewest = () => isFollowing() && last === head;

/** Begins, with each connection. @param {Welcome} welcome */
export function welcomed(welcome) {
  begin = welcome.first_seq;
  silent = welcome.last_seq === 0;
  if (!welcome.resumed) {
    clear();
    queue = [];
    [head, quietTo, atHead] = [0, welcome.last_seq, true];
    toEnd();
  } else if (welcome.last_seq - head > PAGE) {
    // So much was missed that nobody wants to hear it all.
    hush();
    quietTo = welcome.last_seq;
  }
  sayMore();
  look();
}

// Into the page.

/** Takes new messages. @param {Message[]} messages */
export function show(messages) {
  head = messages.at(-1)?.seq ?? head;
  if (!atHead) return tell();
  queue.push(...messages);
  if (queue.length > SHOWN_MOST) queue = queue.slice(-SHOWN_MOST);
  soon();
}

function soon() {
  frame ||= requestAnimationFrame(flush);
  timer ||= window.setTimeout(flush, BATCH_MS);
}

function flush() {
  cancelAnimationFrame(frame);
  clearTimeout(timer);
  frame = timer = 0;
  // Who reads back keeps what they read; what comes meanwhile is there when they come down.
  if (!atEnd() && shown.size + queue.length > SHOWN_MOST) leaveHead();
  const batch = queue.splice(0, BATCH_MOST);
  if (shown.size && batch.length && batch[0].seq !== last + 1) clear();
  put(batch.filter(({ seq }) => seq <= quietTo), quiet[quiet.length - 1], "append");
  put(batch.filter(({ seq }) => seq > quietTo), confirmed, "append");
  outbox.forgetTo(last);
  trimTop();
  sayMore();
  follow();
  tell();
  if (queue.length) soon();
}

/** @param {Message[]} messages  @param {HTMLElement} place  @param {"append" | "prepend"} where */
function put(messages, place, where) {
  if (!messages.length) return;
  const added = messages.map((message) => {
    if (message.sender.id === me.id) outbox.forget(message.id);
    const element = make("div", "entry");
    element.append(messageOf(message));
    shown.set(message.seq, { message, element });
    return element;
  });
  first = Math.min(first, messages[0].seq);
  last = Math.max(last, messages[messages.length - 1].seq);
  for (const { seq } of messages) dress(seq);
  dress(messages[messages.length - 1].seq + 1);
  place[where](...added);
}

/** Draws what depends on the message before. @param {number} seq */
function dress(seq) {
  const entry = shown.get(seq);
  if (entry) setOff(entry.element, entry.message, shown.get(seq - 1)?.message, seq === unreadFrom);
}

// Out of it.

function trimTop() {
  if (shown.size <= SHOWN_MOST) return;
  for (; shown.size > KEPT; first++) remove(first);
  dress(first);
  tidy();
}

function trimEnd() {
  if (shown.size <= SHOWN_MOST) return;
  leaveHead();
  for (; shown.size > KEPT; last--) remove(last);
  tidy();
}

/** @param {number} seq */
function remove(seq) {
  const entry = shown.get(seq);
  if (!entry) return;
  takeFocus(entry.element, log);
  entry.element.remove();
  shown.delete(seq);
}

function clear() {
  for (const place of [...quiet, confirmed]) {
    takeFocus(place, log);
    place.replaceChildren();
  }
  tidy();
  shown.clear();
  [first, last] = [Infinity, 0];
}

function leaveHead() {
  atHead = false;
  queue = [];
  hush();
}

/** Makes way for messages that are not to be read out after those that were. Moving these would take long. */
function hush() {
  if (!confirmed.hasChildNodes()) return;
  confirmed.setAttribute("aria-live", "off");
  quiet.push(confirmed);
  const fresh = make("div");
  confirmed.after(fresh);
  confirmed = fresh;
}

/** Takes out blocks that are empty by now. */
function tidy() {
  for (const block of quiet) if (block !== past && !block.hasChildNodes()) block.remove();
  quiet = quiet.filter((block) => block.isConnected);
}

/** Says what is there besides messages: more of them, or none at all. */
function sayMore() {
  const more = first !== Infinity && first > begin;
  if (!more) takeFocus(older, log);
  older.hidden = !more;
  later.hidden = atHead;
  nothing.hidden = !silent || shown.size + outbox.count() > 0;
}

// To and fro.

let [asking, failed] = [false, false];
let hurried = false; // Somebody wants the newest, while something else is asked for.

/** Asks for what lies beyond an end of the window. @param {"older" | "later" | "newest"} where */
async function load(where) {
  if (asking) return void (hurried ||= where === "newest");
  asking = true;
  const before = { older: first, later: last + 1 + PAGE, newest: head + 1 }[where];
  const page = await others.history(before, PAGE)
    .then((answer) => (where === "later" ? whole(answer) : answer)).catch(() => null);
  asking = false;
  if (page) {
    if (where === "older") putOlder(page);
    else putLater(page.messages, where);
    look();
  }
  if (!page || failed) others.complain(page ? "" : say("Older messages did not come. Try again in a moment."));
  failed = !page;
  if (hurried) load("newest");
  hurried = false;
}

/** A long answer keeps its newest: asks for what it left out after the window. @param {History} page */
async function whole(page) {
  let { messages, more } = page;
  while (more && messages.length && messages[0].seq > last + 1) {
    const before = messages[0].seq;
    const rest = await others.history(before, Math.min(PAGE, before - last - 1));
    if (!rest.messages.length) break;
    messages = [...rest.messages, ...messages];
    more = rest.more;
  }
  return { ...page, messages };
}

/** @param {History} page */
function putOlder({ messages, more }) {
  if (!more) begin = Math.min(messages[0]?.seq ?? first, first);
  steady(() => {
    // Into a place that is not read out: only what is new is told to who cannot see it.
    put(messages.filter(({ seq }) => seq < first), past, "prepend");
    sayMore();
  });
  trimEnd();
  sayMore();
  tell();
}

/** @param {Message[]} messages  @param {"later" | "newest"} where */
function putLater(messages, where) {
  if (where === "newest") clear();
  const more = messages.filter(({ seq }) => seq > last);
  put(more, quiet[quiet.length - 1], "append");
  if (shown.size > SHOWN_MOST) steady(trimTop);
  // Nothing more: what lay there was trimmed from the log, and the next to come closes the gap.
  atHead = last >= head || !more.length;
  sayMore();
  if (where === "newest") toEnd();
  else stay();
  tell();
}

const near = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (isIntersecting && others.connected()) load(target === older ? "older" : "later");
  }
}, { root: log, rootMargin: `${AHEAD_PX}px 0px` });

/** Looks anew whether an end of the window is near: it says so again. */
function look() {
  for (const end of [older, later]) {
    near.unobserve(end);
    near.observe(end);
  }
}
look();

older.addEventListener("click", () => load("older"));

/** Goes to the newest message, whatever lies between. */
export function toNewest() {
  if (atHead) toEnd();
  else load("newest");
  tell();
}

// What else there is to say about messages that are shown.

/** @param {number} seq */
export function redact(seq) {
  for (const message of queue) if (message.seq === seq) message.redacted = true;
  shown.get(seq)?.element.querySelector(".text")?.replaceWith(gone());
}

/** Draws the line "New messages" above a message. @param {number} seq 0: takes it away */
export function markFrom(seq) {
  const before = unreadFrom;
  unreadFrom = seq;
  dress(before);
  dress(seq);
  follow();
}

/** The newest of our own messages up to a seq that is in the page. @param {number} seq */
export function lastOwn(seq) {
  for (let at = Math.min(seq, last); at >= first; at--) {
    const entry = shown.get(at);
    if (entry?.message.sender.id === me.id) return entry.element;
  }
}

/** One of our own is stored, perhaps long ago. @param {Ack} ack */
export function stored({ id, seq }) {
  outbox.stored(id, seq);
  outbox.forgetTo(last);
  sayMore();
}

/** Shows one of our own that is on its way. @param {string} id  @param {string} text */
export function showDraft(id, text) {
  outbox.add(id, text);
  sayMore();
  toNewest();
}
