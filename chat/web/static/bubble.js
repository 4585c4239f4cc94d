// @ts-check
/**
 * What one message looks like. For conversation.js and outbox.js.
 * Text of users reaches the document through textContent only.
 *
 * @import {Message, User} from "./chat-types.js"
 */
import { make, nameOf, part } from "./dom.js";
import { linked } from "./links.js";
import { fill, say } from "./texts.js";

const TOGETHER_MS = 5 * 60_000; // Within this, what one person says stands under one name.

const { room = "", userId, userName = "" } = part("chat", HTMLElement).dataset;
/** Who reads this page; each welcome tells it anew. @type {User} */
export const me = { id: Number(userId), name: userName };
/** Whether this room is for two. */
export const isDirect = /^dm\.\d/.test(room);

const timeOnly = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const dayAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const dayAndYear = new Intl.DateTimeFormat(undefined, { dateStyle: "full" });

/** @param {Date} when */
function timeOf(when) {
  const time = make("time", "", timeOnly.format(when));
  time.setAttribute("datetime", when.toISOString());
  time.title = dayAndTime.format(when);
  return time;
}

/**
 * @param {string} className  @param {User} sender  @param {User | null} receiver
 * @param {Node} when or what became of it  @param {Node} words
 */
function bubble(className, sender, receiver, when, words) {
  const element = make("article", className);
  const head = make("header");
  const name = nameOf(sender.name);
  name.className = "sender";
  head.append(name, " ");
  // In a room for two it goes without saying.
  if (receiver && !isDirect) head.append(...fill(say("to {name}"), { name: [nameOf(receiver.name)] }), " ");
  head.append(when);
  element.append(head, words);
  return element;
}

/** @param {string} text */
function wordsOf(text) {
  const words = make("p", "text");
  words.dir = "auto";
  words.append(...linked(text));
  return words;
}

/** What an operator took away. */
export const gone = () => make("p", "text gone", say("This text was removed."));

/** One in the log. @param {Message} message */
export function messageOf({ sender, receiver, sent_at, text, redacted }) {
  const className = sender.id === me.id ? "message own" : "message";
  return bubble(className, sender, receiver, timeOf(new Date(sent_at)), redacted ? gone() : wordsOf(text));
}

/** One of ours that is not in the log yet. @param {string} text  @param {Node} fate */
export function draftOf(text, fate) {
  return bubble("message own pending", me, null, fate, wordsOf(text));
}

/**
 * Sets a message off from the one before: by nothing, by its name, by a line "New messages", by a day. A line that
 * is there already is left alone, so that it is not read out again.
 * @param {HTMLElement} entry with the message, and with the lines above it
 * @param {Message} message  @param {Message | undefined} before  @param {boolean} unread
 */
export function setOff(entry, message, before, unread) {
  const [at, then] = [new Date(message.sent_at), new Date(before?.sent_at ?? 0)];
  const newDay = at.toDateString() !== then.toDateString();
  const near = at.getTime() - then.getTime() < TOGETHER_MS;
  entry.classList.toggle("together", !newDay && near && !unread && !!before && sameVoice(message, before));
  line(entry, "p", "unread", unread ? say("New messages") : "");
  // In words that stay true when the day is over.
  const form = at.getFullYear() === new Date().getFullYear() ? day : dayAndYear;
  line(entry, "h2", "day", newDay ? form.format(at) : "");
}

/** @param {Message} one  @param {Message} other */
function sameVoice(one, other) {
  return one.sender.id === other.sender.id && one.sender.name === other.sender.name
    && one.receiver?.id === other.receiver?.id;
}

/** @param {HTMLElement} entry  @param {string} tag  @param {string} className  @param {string} words "": none */
function line(entry, tag, className, words) {
  const there = entry.querySelector(`:scope > .${className}`);
  if (!words) there?.remove();
  else if (!there) entry.prepend(make(tag, className, words));
}
