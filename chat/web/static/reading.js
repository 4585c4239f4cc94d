// @ts-check
/**
 * What has been read, and what has not: the count in the title, the line above the first new message, the button
 * to the newest, the markers that other devices and the other one of a direct room are told, "Sent" and "Seen".
 * Reading is the newest message in sight on a page in sight.
 *
 * @import {Message, User, Welcome} from "./chat-types.js"
 * @typedef {{id: number, last_read_seq: number}} Mark
 */
import { isDirect, me } from "./bubble.js";
import { isFollowing, lastOwn, markFrom, showsNewest, toNewest } from "./conversation.js";
import { make, part, takeFocus, write } from "./dom.js";
import { follow } from "./scroll.js";
import { say } from "./texts.js";

const log = part("log", HTMLElement);
const newer = part("newer", HTMLButtonElement);
const title = document.title;

/** A word under the newest of our own messages that it is true of. @param {string} word */
function receipt(word) {
  const element = make("p", "receipt", word);
  element.setAttribute("aria-live", "off");
  return element;
}
const [sent, seen] = [receipt(say("Sent")), receipt(say("Seen"))];

let head = 0; // Seq of the newest message that came.
let readTo = 0; // What this user has read, here or elsewhere.
let told = 0; // What the server was told of it.
let readByOther = 0; // What the other one of a direct room has read.
let known = false; // Whether we know what was read before this page was opened.

/** @type {(seq: number) => void} */
let send;
/** @type {() => Promise<Mark[]>} */
let ask;

/** Sets who tells the server what was read, and who asks it. @param {{read: typeof send, marks: typeof ask}} others */
export function start(others) {
  ({ read: send, marks: ask } = others);
}

const visible = () => document.visibilityState === "visible";
const isLooking = () => visible() && isFollowing();

/**
 * Asks what was read before, with the first connection; of the other one with each, as markers may be missed.
 * @param {Welcome} welcome
 */
export async function welcomed(welcome) {
  if (!welcome.resumed) [head, readTo, told] = [0, Math.min(readTo, welcome.last_seq), 0];
  if (known && !isDirect) return;
  const marks = await ask();
  for (const { id, last_read_seq } of marks) {
    if (id !== me.id) readByOther = isDirect ? last_read_seq : 0;
    // Who was never here has missed nothing.
    else if (!known && last_read_seq) readTo = Math.min(last_read_seq, welcome.last_seq);
  }
  if (!known) {
    known = true;
    readTo ||= welcome.last_seq;
    // What came while we asked is new to who was not looking.
    if (readTo < (isLooking() ? welcome.last_seq : Math.max(welcome.last_seq, head))) markFrom(readTo + 1);
  }
  look();
}

/** New messages came. @param {Message[]} messages */
export function arrived(messages) {
  const before = head;
  head = messages.at(-1)?.seq ?? head;
  const fresh = messages.find(({ seq, sender }) => seq > readTo && sender.id !== me.id);
  if (known && fresh && readTo >= before && !isLooking()) markFrom(fresh.seq);
  look();
}

/**
 * Somebody has read up to here: this user on another device, or the other one.
 * @param {{user: User, seq: number}} mark
 */
export function wasRead({ user, seq }) {
  if (user.id === me.id) readTo = Math.max(readTo, seq);
  else if (isDirect) readByOther = Math.max(readByOther, seq);
  look();
}

/** This user says something, and so has seen where the new began. */
export function answered() {
  markFrom(0);
}

/** Looks what is in sight, and says what is not. */
export function look() {
  if (known && visible() && showsNewest() && head > told) {
    told = readTo = head;
    send(head);
  }
  const unread = known && !isLooking() ? Math.max(0, head - readTo) : 0;
  const words = unread ? `(${unread}) ${title}` : title;
  if (document.title !== words) document.title = words;
  write(newer, unread ? say("New messages ({n})", { n: unread }) : say("To the newest"));
  if (isFollowing()) takeFocus(newer, log);
  newer.hidden = isFollowing();
  confirm();
}

function confirm() {
  const [newest, read] = [lastOwn(Infinity), readByOther ? lastOwn(readByOther) : undefined];
  put(sent, newest === read ? undefined : newest);
  put(seen, read);
}

/** @param {HTMLElement} element  @param {HTMLElement | undefined} place */
function put(element, place) {
  if (!place) element.remove();
  else if (element.parentElement !== place) {
    place.append(element);
    follow(); // It comes a moment after its message.
  }
}

document.addEventListener("visibilitychange", look);
newer.addEventListener("click", toNewest);
