// @ts-check
/**
 * Our messages that are not known to be stored, in the order of sending: the part of chat-client.js that loses none
 * and sends none under another name. Owns which of them go out next, when, and the copies in sessionStorage that
 * outlive a reload; the socket is the client's. To repeat one is safe, as it keeps its id.
 *
 * @import {Refusal, Unsent} from "./chat-types.js"
 * @typedef {Unsent & {sentAt: number}} Entry when it went out, in ms since 1970; 0: it is to go out
 */
import { randomId } from "./questions.js";

const UNSENT_MOST = 200; // Nobody types more than this into a dead connection.
const IN_FLIGHT_MOST = 16; // Below what servers hold of one connection, so that none has to stop reading.
const ANSWER_LIMIT_MS = 30_000; // What nobody has answered until then is sent once more.
const RETRY_DEFAULT_S = 1;
const TRY_AGAIN = new Set(["rate_limited", "unavailable"]);

export class UnsentMessages {
  /** @type {Map<string, Entry>} */ #entries = new Map();
  #heldUntil = 0; // In ms since 1970: the server asked to wait.
  #slow = false; // From a `rate_limited` until all is sent: one at a time, so that the order stays.
  #place; #owner;

  /** @param {string} place of the room, to tell its copies from others  @param {number} [owner] their user's id */
  constructor(place, owner) {
    this.#place = `unsent ${place}`;
    // Who does not know it yet is taken for the one who was here last: this is the same tab.
    this.#owner = owner ?? (Number(load(this.#place)) || undefined);
    this.#restore();
  }

  /** @returns {Unsent[]} */
  get list() { return Array.from(this.#entries.values(), ({ sentAt, ...message }) => message); }

  /** Throws RangeError where too many wait. @param {string} text  @param {{receiver_id?: number}} to */
  add(text, to) {
    if (this.#entries.size >= UNSENT_MOST) throw new RangeError(`${UNSENT_MOST} messages are waiting already.`);
    const id = randomId();
    this.#entries.set(id, { ...to, id, text, sentAt: 0 });
    this.#keep();
    return id;
  }

  /** A connection of this user begins. Returns what waits under another name: it is taken out. @param {number} user */
  begin(user) {
    const others = this.#owner === undefined || this.#owner === user ? [] : this.list;
    for (const { id } of others) this.#entries.delete(id);
    for (const entry of this.#entries.values()) entry.sentAt = 0;
    if (this.#owner === user) return others;
    this.#keep();
    this.#owner = user;
    store(this.#place, String(user));
    this.#restore();
    return others;
  }

  /** Takes out what is stored or refused. @param {string} id */
  remove(id) {
    const entry = this.#entries.get(id);
    if (!entry) return undefined;
    this.#entries.delete(id);
    this.#slow &&= this.#entries.size > 0;
    this.#keep();
    return entry;
  }

  /** Returns the message if it is to be tried again; then all wait as long as asked. @param {Refusal} refusal */
  postpone({ code, id = "", retry_after = RETRY_DEFAULT_S }) {
    const entry = this.#entries.get(id);
    if (!entry || !TRY_AGAIN.has(code)) return undefined;
    entry.sentAt = 0;
    this.#slow ||= code === "rate_limited";
    // A little more than asked, and not the same for everybody who was told the same.
    const wait = 1000 * retry_after * (1 + Math.random() / 4);
    this.#heldUntil = Math.max(this.#heldUntil, Date.now() + wait);
    return entry;
  }

  /** How long nothing may go out, in ms. */
  get pause() { return Math.max(0, this.#heldUntil - Date.now()); }

  /** What is to go out now, in order; from here on it is under way. */
  *next() {
    const now = Date.now();
    let free = this.#slow ? 1 : IN_FLIGHT_MOST;
    for (const entry of this.#entries.values()) {
      if (free-- === 0) return;
      if (entry.sentAt && now - entry.sentAt <= ANSWER_LIMIT_MS) continue;
      entry.sentAt = now;
      yield entry;
    }
  }

  get #key() { return `${this.#place} ${this.#owner}`; }

  #keep() {
    if (this.#owner === undefined) return;
    store(this.#key, this.#entries.size ? JSON.stringify(this.list) : null);
  }

  /** What is kept was sent before what waits here. */
  #restore() {
    if (this.#owner === undefined) return;
    const typed = [...this.#entries];
    this.#entries.clear();
    for (const message of parse(load(this.#key))) this.#entries.set(message.id, { ...message, sentAt: 0 });
    for (const [id, entry] of typed) this.#entries.set(id, entry);
    this.#keep();
  }
}

// Storage may be switched off or full: then only the page keeps what waits.

/** @param {string} key */
function load(key) {
  try {
    return globalThis.sessionStorage?.getItem(key) ?? null;
  } catch {
    return null;
  }
}

/** @param {string} key  @param {string | null} text */
function store(key, text) {
  try {
    if (text === null) globalThis.sessionStorage?.removeItem(key);
    else globalThis.sessionStorage?.setItem(key, text);
  } catch {
    // As above.
  }
}

/** @param {string | null} text  @returns {Unsent[]} */
function parse(text) {
  try {
    const kept = JSON.parse(text ?? "[]");
    return kept.filter((/** @type {Unsent} */ one) => typeof one.id === "string" && typeof one.text === "string");
  } catch {
    return []; // Not ours, or of another version.
  }
}
