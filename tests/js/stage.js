/**
 * What a test of the client stands on: a scripted server, a browser's events, storage and clock, all in the test's
 * hands, and a list of what the client tells. Time passes only by `pass`.
 */
import { mock } from "node:test";
import { ChatClient } from "../../chat/web/static/chat-client.js";
import { Server } from "./server.js";

/** The addresses of all sockets that were opened in this test. @type {URL[]} */
const opened = [];
globalThis.WebSocket = class extends WebSocket {
  constructor(url) {
    super(url);
    opened.push(url);
  }
};

const START = Date.parse("2026-11-24T10:00:00.000Z");

/** @type {ChatClient} */
let newest;

/** A browser's tab: events of its window and document, its storage, and whether it has a network. */
export class Tab {
  constructor() {
    this.window = new EventTarget();
    this.document = new EventTarget();
    this.onLine = true;
    this.kept = new Map();
    this.storage = {
      getItem: (key) => this.kept.get(key) ?? null,
      setItem: (key, text) => void this.kept.set(key, text),
      removeItem: (key) => void this.kept.delete(key),
    };
  }

  /** Makes it the one that the next client is in. */
  open() {
    const { window, document, storage } = this;
    const define = (name, value) => Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
    define("addEventListener", window.addEventListener.bind(window));
    define("document", document);
    define("navigator", this);
    Object.defineProperty(globalThis, "sessionStorage", { get: () => this.blocked ?? storage, configurable: true });
  }

  /** An event, of the window or the document as in browsers. */
  event(name) {
    const target = ["visibilitychange", "freeze", "resume"].includes(name) ? this.document : this.window;
    target.dispatchEvent(new Event(name));
  }
}

/** What a client has told, in order, and what of it was not looked at yet. */
class Told {
  all = [];
  #at = 0;
  #waiting = () => {};

  note(name, what) {
    this.all.push({ name, what });
    this.#waiting();
  }

  /** The next of this name that fits, passing over all before it. */
  async next(name, fits = () => true) {
    for (;;) {
      while (this.#at < this.all.length) {
        const told = this.all[this.#at++];
        if (told.name === name && fits(told.what)) return told.what;
      }
      await new Promise((resolve) => { this.#waiting = resolve; });
    }
  }

  state(name) {
    return this.next("state", (state) => state.name === name);
  }

  of(name) {
    return this.all.filter((told) => told.name === name).map(({ what }) => what);
  }

  get seqs() {
    return this.of("messages").flat().map(({ seq }) => seq);
  }
}

/** Opens a tab, a server and a clock for one test: `const { server, join } = await stage(t)`. */
export async function stage(t) {
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: START });
  const { now } = Date;
  slept = 0;
  mock.method(Date, "now", () => now() + slept);
  const chance = { value: 0.5 };
  mock.method(Math, "random", () => chance.value);
  opened.length = 0;
  const server = await Server.start();
  const tab = new Tab();
  tab.open();
  const clients = [];
  t.after(() => {
    for (const client of clients) client.close();
    server.stop();
    mock.restoreAll();
    mock.timers.reset();
  });

  /** A client that begins to connect, and what it tells. */
  function enter(options = {}) {
    const told = new Told();
    const names = ["Welcome", "Messages", "Redacted", "Ack", "Error", "State", "Presence", "Typing", "Read"];
    const hooks = names.map((name) => [`on${name}`, (what) => told.note(name.toLowerCase(), what)]);
    const client = new ChatClient(server.url, { ...Object.fromEntries(hooks), ...options });
    clients.push(client);
    newest = client;
    return { client, told };
  }

  /** A client that is welcome, on its connection. */
  async function join(options = {}, welcome = {}) {
    const { client, told } = enter(options);
    const socket = await server.next();
    socket.welcome(welcome);
    await told.state("connected");
    return { client, told, socket };
  }

  return { server, tab, chance, opened, enter, join };
}

/** Lets time pass. What is due is done in order, as if nothing took any time. @param {number} ms */
export function pass(ms) {
  mock.timers.tick(ms);
}

let slept = 0;

/** Lets time pass while no timer runs: the machine is off. @param {number} ms */
export function sleep(ms) {
  slept += ms;
}

/** All that the newest client has said on its connection and nobody has looked at yet. */
export async function saidOf(socket) {
  await new Promise(setImmediate); // What waits for a token is said, too.
  const page = newest.history(1);
  const said = [];
  for (;;) {
    const frame = await socket.hear();
    if (frame.type !== "history") said.push(frame);
    else {
      socket.say({ type: "history", id: frame.id, room: "lobby", messages: [], more: false });
      await page;
      return said;
    }
  }
}
