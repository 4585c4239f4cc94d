import assert from "node:assert/strict";
import { test } from "node:test";
import { MARIA } from "./server.js";
import { pass, saidOf, stage } from "./stage.js";

const LUIS = { id: 12, name: "luis" };
const ANA = { id: 3, name: "Ana" };
const ZOE = { id: 5, name: "zoé" };

// Who is here.

test("a picture and its changes are told as whole pictures, sorted by name", async (t) => {
  const { join } = await stage(t);
  const { told, socket } = await join();
  socket.say({ type: "presence", room: "lobby", count: 2, users: [ZOE, MARIA] });
  assert.deepEqual(await told.next("presence"), { count: 2, users: [MARIA, ZOE] });
  socket.say({ type: "presence", room: "lobby", count: 4, joined: [LUIS, ANA], left: [] });
  assert.deepEqual(await told.next("presence"), { count: 4, users: [ANA, LUIS, MARIA, ZOE] });
  socket.say({ type: "presence", room: "lobby", count: 3, joined: [{ id: 12, name: "luisa" }], left: [ZOE] });
  assert.deepEqual(await told.next("presence"), { count: 3, users: [ANA, { id: 12, name: "luisa" }, MARIA] });
  socket.say({ type: "presence", room: "lobby", count: 1, left: [{ id: 99, name: "nobody" }] });
  assert.deepEqual((await told.next("presence")).count, 1);
});

test("a new picture takes the place of all that was known", async (t) => {
  const { join } = await stage(t);
  const { told, socket } = await join();
  socket.say({ type: "presence", room: "lobby", count: 2, users: [ZOE, MARIA] });
  socket.say({ type: "presence", room: "lobby", count: 1_000, users: [ANA, LUIS] });
  assert.deepEqual(await told.next("presence", ({ count }) => count === 1_000), { count: 1_000, users: [ANA, LUIS] });
});

test("of a crowd a hundred are named, and all are counted", async (t) => {
  const { join } = await stage(t);
  const { told, socket } = await join();
  const crowd = (/** @type {number} */ from) =>
    Array.from({ length: 80 }, (_, number) => ({ id: from + number, name: `guest ${from + number}` }));
  socket.say({ type: "presence", room: "lobby", count: 80, users: crowd(100) });
  await told.next("presence");
  socket.say({ type: "presence", room: "lobby", count: 160, joined: crowd(200) });
  const { count, users } = await told.next("presence");
  assert.deepEqual([count, users.length], [160, 100]);
  socket.say({ type: "presence", room: "lobby", count: 159, left: [users[0]], joined: [{ id: 300, name: "zoé" }] });
  const after = await told.next("presence");
  assert.deepEqual([after.count, after.users.length, after.users.at(-1)?.name], [159, 100, "zoé"]);
});

test("a new connection starts with nobody", async (t) => {
  const { server, join } = await stage(t);
  const { told, socket } = await join();
  socket.say({ type: "presence", room: "lobby", count: 2, users: [ZOE, MARIA] });
  await told.next("presence");
  socket.cut();
  await told.state("waiting");
  pass(250);
  const again = await server.next();
  again.welcome();
  again.say({ type: "presence", room: "lobby", count: 2, joined: [LUIS] });
  assert.deepEqual(await told.next("presence"), { count: 2, users: [LUIS] });
});

// Who types.

test("typing is said at once, and then once in 2 s", async (t) => {
  const { join } = await stage(t);
  const { client, socket } = await join();
  for (let key = 0; key < 50; key++) {
    client.typing();
    pass(100);
  }
  assert.deepEqual(await saidOf(socket), [{ type: "typing" }, { type: "typing" }, { type: "typing" }]);
});

test("typing without a connection is forgotten", async (t) => {
  const { server, enter } = await stage(t);
  const { client, told } = enter();
  client.typing();
  const socket = await server.next();
  socket.say({ type: "redacted", room: "lobby", seq: 1 });
  await told.next("redacted"); // The socket is open, and we are not welcome yet.
  client.typing();
  socket.welcome();
  await told.state("connected");
  pass(5_000);
  assert.deepEqual(await saidOf(socket), []);
});

test("who types, and who has read, is told", async (t) => {
  const { join } = await stage(t);
  const { told, socket } = await join();
  socket.say({ type: "typing", room: "lobby", user: LUIS });
  assert.deepEqual(await told.next("typing"), LUIS);
  socket.say({ type: "read", room: "lobby", user: LUIS, seq: 813 });
  assert.deepEqual(await told.next("read"), { user: LUIS, seq: 813 });
  socket.say({ type: "something new", room: "lobby" });
  socket.say({ type: "redacted", room: "lobby", seq: 4 });
  assert.equal(await told.next("redacted"), 4);
});

// How far we have read.

/** What was said to be read by now. */
const readsOf = async (socket) => (await saidOf(socket)).map(({ seq }) => seq);

test("of what is read the newest is said, once a second, and never an older one", async (t) => {
  const { join } = await stage(t);
  const { client, socket } = await join();
  client.read(5);
  client.read(4);
  client.read(7);
  client.read(6);
  assert.deepEqual(await readsOf(socket), [5]);
  pass(999);
  assert.deepEqual(await readsOf(socket), []);
  pass(1);
  assert.deepEqual(await readsOf(socket), [7]);
  client.read(7);
  client.read(3);
  pass(5_000);
  assert.deepEqual(await readsOf(socket), []);
  client.read(8);
  assert.deepEqual(await readsOf(socket), [8]);
});

test("what was read is said again on the next connection, which may be the first to hear it", async (t) => {
  const { server, join } = await stage(t);
  const { client, told, socket } = await join();
  client.read(5);
  assert.deepEqual(await readsOf(socket), [5]);
  client.read(6);
  socket.cut();
  await told.state("waiting");
  client.read(7);
  pass(2_000);
  const again = await server.next();
  again.welcome({ resumed: true });
  await told.state("connected");
  assert.deepEqual(await readsOf(again), [7]);
  pass(5_000);
  assert.deepEqual(await readsOf(again), []);
});

test("a marker that may not have arrived is said again on the next connection", async (t) => {
  const { server, join } = await stage(t);
  const { client, told, socket } = await join();
  client.read(5);
  socket.cut();
  await told.state("waiting");
  pass(1_000);
  const again = await server.next();
  again.welcome({ resumed: true });
  await told.state("connected");
  assert.deepEqual(await readsOf(again), [5]);
});

for (const [what, welcome] of [["of another log", { epoch: "e2" }], ["by another user", { user: LUIS }]]) {
  test(`what was read ${what} is forgotten`, async (t) => {
    const { server, join } = await stage(t);
    const { client, told, socket } = await join();
    client.read(500);
    client.read(501);
    assert.deepEqual(await readsOf(socket), [500]);
    socket.cut();
    await told.state("waiting");
    pass(250);
    const again = await server.next();
    again.welcome(welcome);
    await told.state("connected");
    pass(5_000);
    assert.deepEqual(await readsOf(again), []);
    client.read(3);
    assert.deepEqual(await readsOf(again), [3]);
  });
}
