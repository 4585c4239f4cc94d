// @ts-check
/**
 * Who is in the room, as far as the server told: the part of chat-client.js that makes one picture of pictures
 * and changes. In a large room the server names only some; the count is always of all.
 *
 * @import {Picture, Presence, User} from "./chat-types.js"
 */
const { compare } = new Intl.Collator();
const NAMED_MOST = 100; // As in the server's pictures; a crowd that came later is in the count alone.

export class Company {
  /** @type {Map<number, User>} */ #here = new Map();

  /** Takes a picture or a change, and returns the whole picture. @param {Presence} presence  @returns {Picture} */
  take({ count, users, joined = [], left = [] }) {
    if (users) this.#here.clear();
    for (const { id } of left) this.#here.delete(id);
    for (const user of users ?? joined) {
      if (this.#here.size < NAMED_MOST || this.#here.has(user.id)) this.#here.set(user.id, user);
    }
    return { count, users: [...this.#here.values()].sort((a, b) => compare(a.name, b.name)) };
  }

  /** Starts afresh: the next connection begins with a picture. */
  clear() {
    this.#here.clear();
  }
}
