// @ts-check
/**
 * What a member lets others know besides messages: that they type, and how far they have read. The part of
 * chat-client.js that keeps both within what the server passes on. The socket is the client's.
 */
const TYPING_MS = 2_000; // More often is not passed on by the server.
const READ_MS = 1_000;

export class Signs {
  /** The newest seq that was read; 0: none. */ #read = 0;
  /** What of it this connection has been told. */ #told = 0;
  #typedAt = 0; // These two in ms since 1970.
  #toldAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  #say;

  /** @param {(frame: object) => boolean} say tells whether it went out */
  constructor(say) {
    this.#say = say;
  }

  typing() {
    const now = Date.now();
    if (now - this.#typedAt >= TYPING_MS && this.#say({ type: "typing" })) this.#typedAt = now;
  }

  /** @param {number} seq */
  read(seq) {
    if (seq <= this.#read) return;
    this.#read = seq;
    this.#tell();
  }

  /** A new connection: what was said over the last one may not have arrived. */
  repeat() {
    this.#told = 0;
    this.#tell();
  }

  /** Another user, or another log: what was read is not of it. */
  clear() {
    this.#read = this.#told = 0;
  }

  #tell() {
    clearTimeout(this.#timer);
    if (this.#read === this.#told) return;
    const wait = this.#toldAt + READ_MS - Date.now();
    if (wait > 0) this.#timer = setTimeout(() => this.#tell(), wait);
    else if (this.#say({ type: "read", seq: this.#read })) {
      this.#told = this.#read;
      this.#toldAt = Date.now();
    }
  }
}
