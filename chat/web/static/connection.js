// @ts-check
/**
 * One connection of chat-client.js to its room, from the token to the close: it ends once, and a dropped one says
 * no more. Owns the socket, the token's renewal, and how long silence is borne. What frames mean, and whether and
 * when there is a next connection, is the client's.
 *
 * @import {Failure, Token, Welcome} from "./chat-types.js"
 */
const WELCOME_LIMIT_MS = 15_000; // For a token, and then for the welcome.
// A silent connection is asked after 20 s (most proxies cut at 60 s) and given up 10 s later; sooner where
// somebody has just come back to the page, and looks at it.
const [QUIET_MS, PONG_LIMIT_MS, WAKE_LIMIT_MS] = [20_000, 10_000, 5_000];
// The next token is asked for in the last tenth of a life, at most 30 s before its end, and again with pauses.
const [RENEW_MS, RENEW_PART, RENEW_SOONEST_MS, RENEW_PAUSE_MS] = [30_000, 0.1, 1_000, 5_000];
const DAY_MS = 86_400_000; // Timers overflow at 25 days.

/**
 * @typedef {object} Ears who hears of it
 * @property {(frame: any) => void} heard
 * @property {(failure: Failure) => void} failed
 * @property {(code: number, reason: string) => void} ended not after `drop`; code 0: given up on
 * @property {(direction: "in" | "out", text: string) => void} noted
 */

export class Connection {
  /** When the welcome came, in ms since 1970; 0: not yet. */ joinedAt = 0;
  /** The pause that `closing` asked for. @type {number | undefined} */ toldMs;

  #token; #ears;
  /** @type {WebSocket | null} */ #socket = null;
  #over = false;
  #heardAt = 0;
  #clock = 0; // The server's clock less ours, in ms.
  #renewing = false; // A newer token is on its way to the server.
  /** @type {Record<string, ReturnType<typeof setTimeout> | undefined>} */ #timers = {};

  /** @param {URL} url  @param {Token | undefined} token  @param {Ears} ears */
  constructor(url, token, ears) {
    this.#token = token;
    this.#ears = ears;
    this.#open(new URL(url));
  }

  /** Tells whether the frame went out: not before the welcome, nor over a connection that closes. */
  say(/** @type {object} */ frame) {
    if (!this.joinedAt || this.#over || this.#socket?.readyState !== WebSocket.OPEN) return false;
    const text = JSON.stringify(frame);
    this.#socket.send(text);
    this.#ears.noted("out", text);
    return true;
  }

  /** Looks whether the other side is still there, where somebody waits for it or all was silent for long. */
  look(awaited = false) {
    if (!this.joinedAt || this.#timers.answer || (!awaited && Date.now() - this.#heardAt <= QUIET_MS)) return;
    this.say({ type: "ping" });
    this.#expect(awaited ? WAKE_LIMIT_MS : PONG_LIMIT_MS);
  }

  /** Tells whether a refusal is of the newer token, which is tried again. @param {{code: string, id?: string}} refusal */
  refusedToken({ code, id }) {
    return this.#renewing && code === "forbidden" && id === undefined;
  }

  /** Lets go of it, whether it closes or not: that could take minutes. */
  drop() {
    this.#over = true;
    for (const name in this.#timers) this.#later(name);
    this.#socket?.close(1000);
  }

  async #open(/** @type {URL} */ url) {
    this.#expect(WELCOME_LIMIT_MS);
    try {
      const token = await this.#nextToken();
      if (token) url.searchParams.set("token", token);
    } catch (error) {
      return this.#end(0, String(error));
    }
    if (this.#over) return;
    this.#expect(WELCOME_LIMIT_MS);
    this.#socket = new WebSocket(url);
    this.#socket.onmessage = ({ data }) => this.#receive(data);
    this.#socket.onclose = ({ code, reason }) => this.#end(code, reason);
  }

  #receive(/** @type {string} */ text) {
    this.#heardAt = Date.now();
    this.#later("answer");
    this.#ears.noted("in", text);
    const frame = JSON.parse(text);
    if (frame.type === "welcome") this.#join(frame);
    else if (frame.type === "token") this.#renewBefore(frame.expires_at);
    else if (frame.type === "closing") this.toldMs = 1000 * frame.reconnect_after;
    // Before the welcome, and after `closing`, something must follow.
    if (!this.joinedAt || this.toldMs !== undefined) this.#expect(PONG_LIMIT_MS);
    this.#ears.heard(frame);
  }

  #join(/** @type {Welcome} */ { server_time, expires_at }) {
    this.joinedAt = Date.now();
    this.#clock = Date.parse(server_time) - this.joinedAt || 0;
    this.#renewBefore(expires_at);
  }

  #end(/** @type {number} */ code, /** @type {string} */ reason) {
    if (this.#over) return;
    this.drop();
    this.#ears.ended(code, reason);
  }

  // The token.

  async #nextToken() {
    return typeof this.#token === "function" ? this.#token() : this.#token;
  }

  #renewBefore(/** @type {string | null} */ end) {
    this.#renewing = false;
    if (typeof this.#token !== "function" || !end) return;
    const life = Date.parse(end) - Date.now() - this.#clock;
    const wait = Math.max(life - Math.min(RENEW_MS, RENEW_PART * life), RENEW_SOONEST_MS);
    this.#later("renewal", Math.min(wait, DAY_MS), () => this.#renew());
  }

  async #renew() {
    try {
      const token = await this.#nextToken();
      if (token) this.#renewing = this.say({ type: "token", token });
    } catch (error) {
      if (!this.#over) this.#ears.failed({ code: "no_token", detail: String(error), retrying: true });
    }
    // Until an answer says when the newer one ends.
    this.#later("renewal", RENEW_PAUSE_MS * (1 + Math.random()), () => this.#renew());
  }

  // Time.

  /** Something must be heard within this time. */
  #expect(/** @type {number} */ limit) {
    this.#later("answer", limit, () => this.#end(0, "The server did not answer."));
  }

  /** @param {string} name  @param {number} [wait]  @param {() => void} [act] without it, nothing is done any more */
  #later(name, wait, act) {
    clearTimeout(this.#timers[name]);
    this.#timers[name] = act && !this.#over ? setTimeout(act, wait) : undefined;
  }
}
