// @ts-check
/**
 * Frames that ask, and their answers, matched by id: the part of chat-client.js that waits for pages of older
 * messages. Owns what was asked and is not answered yet; the socket is the client's.
 *
 * @import {History} from "./chat-types.js"
 */
export class Questions {
  /** @type {Map<string, {resolve: (page: History) => void, reject: (error: Error) => void}>} */ #open = new Map();

  /** @param {(id: string) => void} say is called with the id to ask under  @returns {Promise<History>} */
  ask(say) {
    return new Promise((resolve, reject) => {
      const id = randomId();
      this.#open.set(id, { resolve, reject });
      say(id);
    });
  }

  /** Takes an answer. @param {History} page */
  answer(page) {
    this.#take(page.id)?.resolve(page);
  }

  /** Tells whether the refusal was for a question. @param {{id?: string, detail: string}} failure */
  refuse({ id = "", detail }) {
    const asked = this.#take(id);
    asked?.reject(new Error(detail));
    return asked !== undefined;
  }

  /** Gives up on all: their answers would have come over a connection that is gone. */
  drop() {
    for (const { reject } of this.#open.values()) reject(new Error("The connection was lost."));
    this.#open.clear();
  }

  #take(/** @type {string} */ id) {
    const asked = this.#open.get(id);
    this.#open.delete(id);
    return asked;
  }
}

/** 128 random bits. Not randomUUID: that exists in secure contexts only, and chats run in plain LANs too. */
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `c-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
