// @ts-check
/**
 * One member of one room: a cursor into the room's log that outlives lost connections.
 * Owns the cursor, and when to connect; what waits to be sent is unsent.js's, each socket connection.js's. Knows
 * nothing of any page: it tells what happens through the callbacks of its options. The wire contract is
 * docs/protocol.md.
 *
 *     const chat = new ChatClient("/ws/chat/lobby/", { onMessages: (list) => list.forEach(show) });
 *     chat.send("hola");
 *
 * @import {Ack, Callbacks, Message, Options, Refusal, State, User, Welcome} from "./chat-types.js"
 */
import { Company } from "./company.js";
import { Connection } from "./connection.js";
import { Questions } from "./questions.js";
import { Signs } from "./signs.js";
import { UnsentMessages } from "./unsent.js";

// Full jitter: a random part of a limit that doubles. Half a second at first, as most losses are short.
const [BACKOFF_FIRST_MS, BACKOFF_MOST_MS] = [500, 30_000];
const STEADY_MS = 10_000; // A connection that stood this long starts the back-off anew.
// The browser's word for "no network" is not always right, so an offline client still tries, seldom.
const OFFLINE_RETRY_MS = 10_000;
const HURRY_MS = 2_000; // Who cannot wait may try this often: more would only be load on a server in need.
const THAW_MS = 1_000; // A tab that says it freezes and then does not is back after this.
const BEAT_MS = 5_000; // How late it may be noticed that something is due.

const SIGNED_OUT = 4401;
const STAY_AWAY = new Set([1003, 1008, 1009, SIGNED_OUT, 4403, 4404]);
const OTHER_USER = { code: "other_user", detail: "You are signed in as somebody else now.", retrying: false };

export class ChatClient {
  /** Who and where the server says we are, set by each welcome. @type {User | null} */ user = null;
  room = ""; limits = { text: 4_000, frame: 65_536 };
  /** @type {State} */ state = { name: "connecting" };

  #url; #options; #unsent; #questions = new Questions(); #company = new Company();
  #signs = new Signs((frame) => this.#say(frame));
  /** @type {Connection | null} */ #connection = null;
  /** Seq of the newest message handed on; null until the first is known. @type {number | null} */ #cursor = null;
  #epoch = "";
  #attempts = 0;
  #triedAt = 0; // These two in ms since 1970.
  #toldUntil = 0; // When `closing` let us come back: earlier only if somebody asks for it.
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #retrying;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #held;
  #beating;
  #ended = new AbortController();

  /** @param {string | URL} url of the room's socket  @param {Options} [options] */
  constructor(url, options = {}) {
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#options = options;
    this.#unsent = new UnsentMessages(this.#url.host + this.#url.pathname, options.user?.id);
    const { signal } = this.#ended;
    for (const event of ["online", "focus", "pageshow"]) globalThis.addEventListener?.(event, this.#wake, { signal });
    for (const event of ["visibilitychange", "resume"]) globalThis.document?.addEventListener(event, this.#wake, { signal });
    globalThis.addEventListener?.("offline", this.#unplugged, { signal });
    globalThis.addEventListener?.("pagehide", this.#freeze, { signal });
    globalThis.document?.addEventListener("freeze", this.#freeze, { signal });
    this.#beating = setInterval(() => this.#beat(), BEAT_MS);
    // Not at once: callbacks may name the variable that this object is about to be put in.
    queueMicrotask(() => this.#triedAt || this.connect());
  }

  /** Messages of ours that are not known to be stored, in the order of sending; after a reload, too. */
  get waiting() { return this.#unsent.list; }

  /** Connects now, from the cursor on; also what to call to try again after a refusal. */
  connect() {
    if (this.state.name === "closed") return;
    this.#drop();
    this.#triedAt = Date.now();
    const url = new URL(this.#url);
    if (this.#cursor !== null) {
      url.searchParams.set("since", String(this.#cursor));
      url.searchParams.set("epoch", this.#epoch);
    }
    this.#connection = new Connection(url, this.#options.token, {
      heard: (frame) => this.#hear(frame),
      failed: (failure) => this.#tell("onError", failure),
      ended: (code, reason) => this.#over(code, reason),
      noted: (direction, text) => this.#tell("onFrame", direction, text),
    });
    this.#become({ name: offline() ? "offline" : "connecting" });
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
    const id = this.#unsent.add(clean, to);
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

  /** Somebody types: to be called at every key. */
  typing() { this.#signs.typing(); }

  /** This user has read up to here. @param {number} seq */
  read(seq) { this.#signs.read(seq); }

  /** Somebody cannot wait: what would be tried later is tried now, or as soon as the last try is 2 s ago. */
  hurry() { this.#advance(this.#triedAt + HURRY_MS); }

  /** Leaves for good. */
  close() {
    this.#ended.abort();
    clearInterval(this.#beating);
    this.#drop();
    this.#become({ name: "closed" });
  }

  // What the server says.

  #hear(/** @type {any} */ frame) {
    if (frame.type === "welcome") this.#welcome(frame);
    else if (frame.type === "messages") this.#take(frame.messages);
    else if (frame.type === "ack") this.#settle(frame);
    else if (frame.type === "error") this.#fail(frame);
    else if (frame.type === "history") this.#questions.answer(frame);
    else if (frame.type === "redacted") this.#tell("onRedacted", frame.seq);
    else if (frame.type === "presence") this.#tell("onPresence", this.#company.take(frame));
    else if (frame.type === "typing") this.#tell("onTyping", frame.user);
    else if (frame.type === "read") this.#tell("onRead", { user: frame.user, seq: frame.seq });
  }

  #welcome(/** @type {Welcome} */ welcome) {
    // What was read was read by that user, in that log.
    if (this.#epoch !== welcome.epoch || this.user?.id !== welcome.user.id) this.#signs.clear();
    ({ user: this.user, room: this.room, epoch: this.#epoch, limits: this.limits = this.limits } = welcome);
    // Not resumed: the newest follow, and the first of them sets the cursor, unless there is none.
    if (!welcome.resumed) this.#cursor = welcome.last_seq < welcome.first_seq ? welcome.last_seq : null;
    this.#company.clear();
    // Somebody else signed in meanwhile: what waits must not go out under that name.
    const others = this.#unsent.begin(welcome.user.id);
    this.#tell("onWelcome", welcome);
    for (const { id, text } of others) this.#tell("onError", { ...OTHER_USER, id, text });
    this.#become({ name: "connected" });
    this.#flush();
    this.#signs.repeat();
  }

  #take(/** @type {Message[]} */ messages) {
    const fresh = [];
    for (const message of messages) {
      this.#cursor ??= message.seq - 1;
      if (message.seq === this.#cursor + 1) fresh.push(message), this.#cursor++;
    }
    if (fresh.length) this.#tell("onMessages", fresh);
    // A message of ours in the log is as good as its ack, which may have been lost.
    for (const own of fresh) if (own.sender.id === this.user?.id) this.#settle({ ...own, duplicate: false });
    // A gap: what lies in it comes again when we ask from the cursor on.
    if ((messages.at(-1)?.seq ?? 0) > (this.#cursor ?? 0)) this.#retry();
  }

  #settle(/** @type {Ack} */ ack) {
    if (!this.#unsent.remove(ack.id)) return;
    this.#tell("onAck", ack);
    this.#flush();
  }

  #fail(/** @type {Refusal} */ refusal) {
    if (this.#questions.refuse(refusal)) return;
    const postponed = this.#unsent.postpone(refusal);
    const entry = postponed ?? this.#unsent.remove(refusal.id ?? "");
    const retrying = !!postponed || !!this.#connection?.refusedToken(refusal);
    this.#tell("onError", { ...refusal, text: entry?.text, retrying });
    this.#flush();
  }

  // What we say.

  #flush() {
    clearTimeout(this.#held);
    if (this.state.name !== "connected") return;
    const wait = this.#unsent.pause;
    if (wait > 0) return void (this.#held = setTimeout(() => this.#flush(), wait));
    for (const { id, text, receiver_id = this.#otherOne() } of this.#unsent.next()) {
      this.#say({ type: "send", id, text, receiver_id });
    }
  }

  /** The other user of a direct room. */
  #otherOne() {
    const pair = /^dm\.(\d+)\.(\d+)$/.exec(this.room)?.slice(1).map(Number);
    return pair?.find((id) => id !== this.user?.id);
  }

  #say(/** @type {object} */ frame) {
    return this.#connection?.say(frame) ?? false;
  }

  // Staying connected.

  #beat() {
    this.#connection?.look();
    this.#flush(); // What nobody has answered.
    if (Date.now() > (this.state.until ?? Infinity)) this.connect(); // The timer has slept.
  }

  /** Looks now: the network is back, or timers may have slept while the page was hidden or the machine off. */
  #wake = () => {
    this.#connection?.look(true);
    this.#advance(Math.max(this.#triedAt + HURRY_MS, this.#toldUntil));
  };

  /**
   * A tab that is frozen, or put aside to be gone back to, cannot listen: what it is sent would pile up, and others
   * take it for present. Many browsers put no page aside that has a socket.
   */
  #freeze = () => {
    if (!this.#connection) return;
    this.#drop();
    this.#wait(Date.now() + THAW_MS);
  };

  /** Without a network no connection is any good, although none is closed. */
  #unplugged = () => {
    if (this.#connection) this.#retry();
    else if (this.state.until !== undefined) this.#wait(this.state.until, this.state);
  };

  #over(/** @type {number} */ code, /** @type {string} */ reason) {
    // A token that was good has run out: whoever gave it is asked for the next one.
    const renewable = code === SIGNED_OUT && this.#connection?.joinedAt && typeof this.#options.token === "function";
    if (renewable || !STAY_AWAY.has(code)) return this.#retry(code, reason);
    this.#drop();
    this.#become({ name: code === SIGNED_OUT ? "signed-out" : "refused", code, reason });
  }

  #retry(code = 0, reason = "") {
    const { joinedAt = 0, toldMs } = this.#connection ?? {};
    if (joinedAt && Date.now() - joinedAt > STEADY_MS) this.#attempts = 0;
    const limit = Math.min(BACKOFF_MOST_MS, BACKOFF_FIRST_MS * 2 ** this.#attempts++);
    const wait = Math.max(toldMs ?? Math.random() * limit, offline() ? OFFLINE_RETRY_MS : 0);
    this.#toldUntil = Date.now() + (toldMs ?? 0);
    this.#drop();
    this.#wait(Date.now() + wait, { code, reason });
  }

  /** Tries at this time rather than later, or at once where it is past. */
  #advance(/** @type {number} */ at) {
    const { until } = this.state;
    if (until === undefined) return;
    const sooner = Math.max(Date.now(), Math.min(at, until));
    if (sooner !== until) this.#wait(sooner, this.state);
  }

  /** @param {number} until  @param {{code?: number, reason?: string}} [how] the last connection ended */
  #wait(until, { code, reason } = {}) {
    clearTimeout(this.#retrying);
    this.#retrying = setTimeout(() => this.connect(), until - Date.now());
    this.#become({ name: offline() ? "offline" : "waiting", until, code, reason });
  }

  #drop() {
    clearTimeout(this.#retrying);
    this.#connection?.drop();
    this.#connection = null;
    this.#questions.drop();
  }

  #become(/** @type {State} */ state) {
    this.state = state;
    this.#tell("onState", state);
  }

  /**
   * Calls back. What goes wrong in a page must not end what is done here: it goes to the console.
   * @template {keyof Callbacks} Name @param {Name} name  @param {Parameters<NonNullable<Callbacks[Name]>>} what
   */
  #tell(name, ...what) {
    try {
      /** @type {((...what: any) => void) | undefined} */ (this.#options[name])?.(...what);
    } catch (error) {
      queueMicrotask(() => { throw error; });
    }
  }
}

const offline = () => globalThis.navigator?.onLine === false;
