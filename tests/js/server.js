/**
 * A chat server that does nothing by itself: a test takes each connection that comes, reads what the client says
 * there, and says, closes or keeps silent as it likes. Text frames below 64 KiB, unfragmented, and closes only.
 */
import { createHash } from "node:crypto";
import { createServer } from "node:http";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455, 1.3.
const [TEXT, CLOSE] = [1, 8];

export const MARIA = { id: 7, name: "maria" };

/** What comes later than it is asked for, or is asked for later than it comes. */
class Queue {
  #come = [];
  #asked = [];

  put(one) {
    const asked = this.#asked.shift();
    if (asked) asked(one);
    else this.#come.push(one);
  }

  next() {
    if (this.#come.length) return Promise.resolve(this.#come.shift());
    return new Promise((resolve) => this.#asked.push(resolve));
  }
}

export class Server {
  #http = createServer();
  #connections = new Queue();
  #sockets = new Set();
  #refusal = 0;

  static async start() {
    const server = new Server();
    server.#http.on("upgrade", (request, socket) => server.#accept(request, socket));
    await new Promise((listening) => server.#http.listen(0, "127.0.0.1", listening));
    server.url = `ws://127.0.0.1:${server.#http.address().port}/ws/chat/lobby/`;
    return server;
  }

  /** The next connection that comes, or that has come and was not taken. */
  next() {
    return this.#connections.next();
  }

  /** Answers the next one by HTTP, as a server does that drains. */
  refuseNext(status) {
    this.#refusal = status;
  }

  stop() {
    for (const socket of this.#sockets) socket.destroy();
    this.#http.close();
  }

  #accept(request, socket) {
    this.#sockets.add(socket);
    socket.on("error", () => {}); // Cut off: the test knows.
    if (this.#refusal) {
      socket.end(`HTTP/1.1 ${this.#refusal} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
      this.#refusal = 0;
      return;
    }
    const key = createHash("sha1").update(request.headers["sec-websocket-key"] + GUID).digest("base64");
    socket.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    socket.write(`Sec-WebSocket-Accept: ${key}\r\n\r\n`);
    this.#connections.put(new Connection(request, socket));
  }
}

class Connection {
  #socket;
  #bytes = Buffer.alloc(0);
  #heard = new Queue();
  #left;

  constructor(request, socket) {
    this.query = Object.fromEntries(new URL(request.url, "http://localhost").searchParams);
    this.#socket = socket;
    /** Resolves with the code that the client closes with; 1006: it went without a word. */
    this.left = new Promise((resolve) => { this.#left = resolve; });
    socket.on("data", (bytes) => this.#read(bytes));
    socket.on("close", () => this.#left(1006));
  }

  /** Says welcome to maria; what is not given is that of an empty room. */
  welcome(fields = {}) {
    this.say({
      type: "welcome", protocol: 1, room: "lobby", epoch: "e1", first_seq: 1, last_seq: 0, resumed: false, user: MARIA,
      expires_at: null, limits: { text: 4000, frame: 65536 }, server_time: new Date(Date.now()).toISOString(), ...fields,
    });
  }

  say(frame) {
    this.#write(TEXT, Buffer.from(JSON.stringify(frame)));
  }

  /** Says these messages: numbers, or entries with what differs. */
  messages(...entries) {
    const messages = entries.map((entry) => message(typeof entry === "number" ? { seq: entry } : entry));
    this.say({ type: "messages", room: "lobby", messages });
  }

  /** What the client says next. */
  hear() {
    return this.#heard.next();
  }

  close(code, reason = "") {
    const payload = Buffer.alloc(2 + Buffer.byteLength(reason));
    payload.writeUInt16BE(code);
    payload.write(reason, 2);
    this.#write(CLOSE, payload);
  }

  /** Ends it without a word, as a network does. */
  cut() {
    this.#socket.destroy();
  }

  #write(opcode, payload) {
    const long = payload.length > 125;
    const head = Buffer.alloc(long ? 4 : 2);
    head[0] = 0x80 | opcode;
    head[1] = long ? 126 : payload.length;
    if (long) head.writeUInt16BE(payload.length, 2);
    this.#socket.write(Buffer.concat([head, payload]));
  }

  #read(bytes) {
    this.#bytes = Buffer.concat([this.#bytes, bytes]);
    for (;;) {
      const data = this.#bytes;
      if (data.length < 2) return;
      const long = (data[1] & 0x7f) === 126;
      const start = long ? 8 : 6; // After the mask.
      if (data.length < start) return;
      const length = long ? data.readUInt16BE(2) : data[1] & 0x7f;
      if (data.length < start + length) return;
      const payload = Buffer.from(data.subarray(start, start + length));
      for (let at = 0; at < length; at++) payload[at] ^= data[start - 4 + (at % 4)];
      this.#bytes = data.subarray(start + length);
      this.#take(data[0] & 0x0f, payload);
    }
  }

  #take(opcode, payload) {
    if (opcode === TEXT) this.#heard.put(JSON.parse(payload.toString()));
    if (opcode !== CLOSE) return;
    this.#left(payload.length ? payload.readUInt16BE() : 1005);
    if (!this.#socket.writableEnded) {
      this.#write(CLOSE, payload);
      this.#socket.end();
    }
  }
}

export function message(fields) {
  const { seq } = fields;
  return {
    seq, id: `c-${seq}`, sender: { id: 12, name: "luis" }, receiver: null, text: `text ${seq}`,
    sent_at: "2026-11-24T10:00:00.123Z", ...fields,
  };
}
