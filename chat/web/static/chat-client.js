// @ts-check
/**
 * One member of one room: a cursor into the room's log that outlives lost connections.
 * Owns the socket, the cursor and the unsent messages. Knows nothing of any page: it tells what
 * happens through the callbacks of its options. The wire contract is docs/protocol.md.
 *
 *     const chat = new ChatClient("/ws/chat/lobby/", { onMessages: (list) => list.forEach(show) });
 *     chat.send("hola");
 *
 * @import {Ack, Failure, Message, Options, State, Unsent, User, Welcome} from "./chat-types.js"
 */
import { Questions, randomId } from "./questions.js";

// Full jitter: a random part of a limit that doubles. Half a second at first, as most losses are short.
const [BACKOFF_FIRST_MS, BACKOFF_MOST_MS] = [500, 30_000];
const STEADY_MS = 10_000; // A connection that stood this long starts the back-off anew.
// The browser's word for "no network" is not always right, so an offline client still tries, seldom.
const OFFLINE_RETRY_MS = 10_000;
const HURRY_MS = 2_000; // Who cannot wait may try this often: more would only be load on a server in need.
// A silent connection is asked after 20 s (most proxies cut at 60 s) and given up 10 s later.
const [BEAT_MS, WELCOME_LIMIT_MS, QUIET_MS, PONG_LIMIT_MS] = [5_000, 15_000, 20_000, 10_000];
// Repeating is safe (same id), so what nobody answered is simply sent once more.
const ANSWER_LIMIT_MS = 30_000;
const RETRY_DEFAULT_S = 1;
const UNSENT_MOST = 200; // Nobody types more than this into a dead connection.
const IN_FLIGHT_MOST = 16; // Below what servers hold of one connection, so that none has to stop reading.

const SIGNED_OUT = 4401;
const STAY_AWAY = new Set([1003, 1008, 1009, SIGNED_OUT, 4403, 4404]);
const TRY_AGAIN = new Set(["rate_limited", "unavailable"]);
const OTHER_USER = { code: "other_user", detail: "You are signed in as somebody else now." };

export class ChatClient {
  /** Who and where the server says we are, set by each welcome. @type {User | null} */ user = null;
  room = ""; limits = { text: 4_000, frame: 65_536 };
  /** @type {State} */ state = { name: "connecting" };

  #url; #options; #questions = new Questions();
  /** The one socket listened to: a dropped one may say what it likes. @type {WebSocket | null} */ #socket = null;
  /** Seq of the newest message handed on; null until the first is known. @type {number | null} */ #cursor = null;
  #epoch = "";
  /** In the order of sending; left by being stored or refused. @type {Map<string, Unsent>} */ #unsent = new Map();
  #attempts = 0;
  #round = 0; // Grows with each start and end, to see after an await that things have moved on.
  #triedAt = 0; // These four in ms since 1970; 0: not now.
  #joinedAt = 0;
  #heardAt = 0;
  #pingedAt = 0;
  /** The pause that `closing` asked for. @type {number | undefined} */ #toldMs;
  #heldUntil = 0;
  #slow = false; // From a `rate_limited` until all is sent: one at a time, so that the order stays.
  /** @type {Record<string, ReturnType<typeof setTimeout>>} */ #timers = {};
  #ended = new AbortController();

  /** @param {string | URL} url of the room's socket  @param {Options} [options] */
  constructor(url, options = {}) {
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#options = options;
    const { signal } = this.#ended;
    for (const event of ["online", "focus"]) globalThis.addEventListener?.(event, this.#wake, { signal });
    globalThis.addEventListener?.("offline", this.#lost, { signal });
    globalThis.document?.addEventListener("visibilitychange", this.#wake, { signal });
    this.#timers.beat = setInterval(() => this.#beat(), BEAT_MS);
    // Not at once: callbacks may name the variable that this object is about to be put in.
    queueMicrotask(() => this.#round === 0 && this.connect());
  }

  /** How many messages are not yet known to be stored. */
  get unsent() { return this.#unsent.size; }

  /** Connects now, from the cursor on; also what to call to try again after a refusal. */
  async connect() {
    this.#drop();
    this.#triedAt = Date.now();
    const round = this.#round;
    this.#become({ name: offline() ? "offline" : "connecting" });
    const url = new URL(this.#url);
    const { token } = this.#options;
    try {
      const value = typeof token === "function" ? await token() : token;
      if (value) url.searchParams.set("token", value);
    } catch (error) {
      if (round === this.#round) this.#retry(0, String(error));
    }
    if (round !== this.#round) return;
    if (this.#cursor !== null) {
      url.searchParams.set("since", String(this.#cursor));
      url.searchParams.set("epoch", this.#epoch);
    }
    this.#heardAt = Date.now();
    const socket = (this.#socket = new WebSocket(url));
    socket.onmessage = (event) => socket === this.#socket && this.#receive(event.data);
    socket.onclose = (event) => socket === this.#socket && this.#closed(event);
  }

  /**
   * Queues a message and returns its id. Throws RangeError where it is too long or too many wait.
   * @param {string} text  @param {{receiver_id?: number}} [to]
   */
  send(text, to = {}) {
    // Half a surrogate pair or a NUL cannot be stored, and would be refused without naming the message.
    const clean = text.replace(/[\0\p{Cs}]/gu, "\uFFFD");
    const length = Array.from(clean).length;
    if (length > this.limits.text) throw new RangeError(`Too long: ${length} of ${this.limits.text} characters.`);
    if (this.unsent >= UNSENT_MOST) throw new RangeError(`${UNSENT_MOST} messages are waiting already.`);
    const id = randomId();
    this.#unsent.set(id, { ...to, id, text: clean, sentAt: 0 });
    this.#flush();
    return id;
  }

  /**
   * Asks for the newest of the messages before a seq. Rejects where the server refuses, or the connection ends.
   * @param {number} before  @param {number} [limit]
   */
  async history(before, limit = 50) {
    if (this.state.name !== "connected") throw new Error("There is no connection.");
    return this.#questions.ask((id) => this.#say({ type: "history", id, before, limit }));
  }

  /** Somebody cannot wait: what would be tried later is tried now, or as soon as the last try is 2 s ago. */
  hurry() {
    const at = Math.max(Date.now(), this.#triedAt + HURRY_MS);
    if (at < (this.state.until ?? 0)) this.#wait({ ...this.state, until: at });
  }

  /** Leaves for good. */
  close() {
    this.#ended.abort();
    clearInterval(this.#timers.beat);
    this.#drop();
    this.#become({ name: "closed" });
  }

  // What the server says.

  #receive(/** @type {string} */ text) {
    this.#heardAt = Date.now();
    this.#pingedAt = 0;
    this.#options.onFrame?.("in", text);
    const frame = JSON.parse(text);
    if (frame.type === "welcome") this.#welcome(frame);
    else if (frame.type === "messages") this.#take(frame.messages);
    else if (frame.type === "ack") this.#settle(frame);
    else if (frame.type === "error") this.#fail(frame);
    else if (frame.type === "history") this.#questions.answer(frame);
    else if (frame.type === "redacted") this.#options.onRedacted?.(frame.seq);
    else if (frame.type === "closing") this.#toldMs = 1000 * frame.reconnect_after;
  }

  #welcome(/** @type {Welcome} */ welcome) {
    const before = this.user;
    ({ user: this.user, room: this.room, limits: this.limits = this.limits } = welcome);
    this.#joinedAt = Date.now();
    this.#epoch = welcome.epoch;
    // Not resumed: the newest follow, and the first of them sets the cursor, unless there is none.
    if (!welcome.resumed) this.#cursor = welcome.last_seq < welcome.first_seq ? welcome.last_seq : null;
    this.#options.onWelcome?.(welcome);
    for (const entry of [...this.#unsent.values()]) {
      entry.sentAt = 0;
      // Somebody else signed in meanwhile: what waits must not go out under that name.
      if (before && before.id !== welcome.user.id) this.#fail({ ...OTHER_USER, id: entry.id });
    }
    this.#become({ name: "connected" });
    this.#flush();
  }

  #take(/** @type {Message[]} */ messages) {
    const fresh = [];
    for (const message of messages) {
      this.#cursor ??= message.seq - 1;
      if (message.seq === this.#cursor + 1) fresh.push(message), this.#cursor++;
    }
    if (fresh.length) this.#options.onMessages?.(fresh);
    // A message of ours in the log is as good as its ack, which may have been lost.
    for (const own of fresh) if (own.sender.id === this.user?.id) this.#settle({ ...own, duplicate: false });
    // A gap: what lies in it comes again when we ask from the cursor on.
    if ((messages.at(-1)?.seq ?? 0) > (this.#cursor ?? 0)) this.#lost();
  }

  #settle(/** @type {Ack} */ ack) {
    if (!this.#unsent.delete(ack.id)) return;
    this.#slow &&= this.unsent > 0;
    this.#options.onAck?.(ack);
    this.#flush();
  }

  #fail(/** @type {Omit<Failure, "retrying">} */ failure) {
    if (this.#questions.refuse(failure)) return;
    const entry = this.#unsent.get(failure.id ?? "");
    const retrying = !!entry && TRY_AGAIN.has(failure.code);
    if (retrying) {
      entry.sentAt = 0;
      this.#slow ||= failure.code === "rate_limited";
      // A little more than asked, and not the same for everybody who was told the same.
      const wait = 1000 * (failure.retry_after ?? RETRY_DEFAULT_S) * (1 + Math.random() / 4);
      this.#heldUntil = Math.max(this.#heldUntil, Date.now() + wait);
    } else if (entry) this.#unsent.delete(entry.id);
    this.#options.onError?.({ ...failure, text: entry?.text, retrying });
    this.#flush();
  }

  // What we say.

  #flush() {
    clearTimeout(this.#timers.hold);
    if (this.state.name !== "connected") return;
    const wait = this.#heldUntil - Date.now();
    if (wait > 0) return void (this.#timers.hold = setTimeout(() => this.#flush(), wait));
    let free = this.#slow ? 1 : IN_FLIGHT_MOST;
    for (const entry of this.#unsent.values()) {
      if (free-- === 0) return;
      if (entry.sentAt) continue;
      entry.sentAt = Date.now();
      const { id, text, receiver_id = this.#otherOne() } = entry;
      this.#say({ type: "send", id, text, receiver_id });
    }
  }

  /** The other user of a direct room. */
  #otherOne() {
    const pair = /^dm\.(\d+)\.(\d+)$/.exec(this.room)?.slice(1).map(Number);
    return pair?.find((id) => id !== this.user?.id);
  }

  #say(/** @type {object} */ frame) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    const text = JSON.stringify(frame);
    this.#socket.send(text);
    this.#options.onFrame?.("out", text);
  }

  // Staying connected.

  #beat() {
    if (!this.#socket) return;
    const now = Date.now();
    const pinged = this.#pingedAt ? now - this.#pingedAt : 0;
    if (pinged > PONG_LIMIT_MS || (!this.#joinedAt && now - this.#heardAt > WELCOME_LIMIT_MS)) return this.#lost();
    if (now - this.#heardAt > QUIET_MS) this.#wake();
    for (const entry of this.#unsent.values()) if (now - entry.sentAt > ANSWER_LIMIT_MS) entry.sentAt = 0;
    this.#flush();
  }

  #closed(/** @type {CloseEvent} */ { code, reason }) {
    // A token that was good has run out: whoever gave it is asked for the next one.
    const renewable = code === SIGNED_OUT && this.#joinedAt && typeof this.#options.token === "function";
    if (renewable || !STAY_AWAY.has(code)) return this.#retry(code, reason);
    this.#drop();
    this.#become({ name: code === SIGNED_OUT ? "signed-out" : "refused", code, reason });
  }

  /** The connection is no good although it is not closed: waiting for its end could take minutes. */
  #lost = () => {
    if (!["signed-out", "refused", "closed"].includes(this.state.name)) this.#retry();
  };

  /** Looks now: the network is back, or timers may have slept while the page was hidden or the machine off. */
  #wake = () => {
    if (this.state.name === "connected") {
      this.#pingedAt ||= Date.now();
      this.#say({ type: "ping" });
    } else this.hurry();
  };

  #retry(code = 0, reason = "") {
    if (this.#joinedAt && Date.now() - this.#joinedAt > STEADY_MS) this.#attempts = 0;
    const limit = Math.min(BACKOFF_MOST_MS, BACKOFF_FIRST_MS * 2 ** this.#attempts++);
    const wait = Math.max(this.#toldMs ?? Math.random() * limit, offline() ? OFFLINE_RETRY_MS : 0);
    this.#drop();
    this.#wait({ name: offline() ? "offline" : "waiting", until: Date.now() + wait, code, reason });
  }

  #wait(/** @type {State} */ state) {
    clearTimeout(this.#timers.retry);
    this.#timers.retry = setTimeout(() => this.connect(), (state.until ?? 0) - Date.now());
    this.#become(state);
  }

  /** Lets go of the socket and of what belongs to it. */
  #drop() {
    const socket = this.#socket;
    this.#round++;
    this.#socket = null;
    this.#toldMs = undefined;
    this.#joinedAt = this.#pingedAt = 0;
    clearTimeout(this.#timers.retry);
    socket?.close(1000);
    this.#questions.drop();
  }

  #become(/** @type {State} */ state) {
    this.state = state;
    this.#options.onState?.(state);
  }
}

const offline = () => globalThis.navigator?.onLine === false;
