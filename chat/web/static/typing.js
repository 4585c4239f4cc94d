// @ts-check
/**
 * Who is typing, in words under the conversation. Nobody is told in speech: it would drown what is said.
 *
 * @import {Message, User} from "./chat-types.js"
 */
import { nameOf, part } from "./dom.js";
import { fill, language, say } from "./texts.js";

const SHOWN_MS = 5_000;
const NAMES_MOST = 3;

const place = part("typing", HTMLElement);
const lists = new Intl.ListFormat(language, { type: "conjunction" });

/** Names, and what ends each, by user id; the latest last. @type {Map<number, {name: string, timer: number}>} */
const typing = new Map();

/** @param {User} user */
export function types({ id, name }) {
  stopped(id);
  typing.set(id, { name, timer: window.setTimeout(() => stopped(id), SHOWN_MS) });
  show();
}

/** Who has said it does not type it any more. @param {Message[]} messages */
export function said(messages) {
  if (typing.size) for (const { sender } of messages) stopped(sender.id);
}

/** @param {number} id */
function stopped(id) {
  clearTimeout(typing.get(id)?.timer);
  if (typing.delete(id)) show();
}

function show() {
  const names = Array.from(typing.values(), ({ name }) => name).slice(0, NAMES_MOST);
  if (!names.length) return place.replaceChildren();
  const listed = lists.formatToParts(names).map(({ type, value }) => (type === "element" ? nameOf(value) : value));
  const words = names.length < typing.size ? say("{names} and others are typing")
    : names.length > 1 ? say("{names} are typing") : say("{names} is typing");
  place.replaceChildren(...fill(words, { names: listed }));
}
