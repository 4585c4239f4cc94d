import assert from "node:assert/strict";
import { test } from "node:test";
import { pass, saidOf, Tab, stage } from "./stage.js";

const MARIA = 7;
const LUIS = { id: 12, name: "luis" };
const textsOf = (messages) => messages.map(({ text }) => text);

/** A client that has sent these and heard nothing, and whose page is gone. */
async function leave(join, texts, options = {}, welcome = {}) {
  const { client, socket } = await join(options, welcome);
  const ids = texts.map((text) => client.send(text));
  for (const _ of texts) await socket.hear();
  client.close();
  return ids;
}

test("what waits survives a reload, and goes out under the same ids before what is sent then", async (t) => {
  const { server, tab, join, enter } = await stage(t);
  const ids = await leave(join, ["a", "b"]);
  const { client, told } = enter({ user: { id: MARIA } });
  assert.deepEqual(client.waiting, [{ id: ids[0], text: "a" }, { id: ids[1], text: "b" }]);
  client.send("c");
  const socket = await server.next();
  socket.welcome();
  const said = [await socket.hear(), await socket.hear(), await socket.hear()];
  assert.deepEqual(textsOf(said), ["a", "b", "c"]);
  assert.deepEqual(said.slice(0, 2).map(({ id }) => id), ids);
  for (const { id } of said) socket.say({ type: "ack", id, seq: 1, sent_at: "", duplicate: true });
  await told.next("ack", ({ id }) => id === said[2].id);
  assert.deepEqual([...tab.kept.values()], [String(MARIA)]); // Nothing but who was here.
  client.close();
  assert.deepEqual(enter({ user: { id: MARIA } }).client.waiting, []);
});

test("what is addressed stays so over a reload", async (t) => {
  const { join } = await stage(t);
  const { client, socket } = await join();
  client.send("psst", { receiver_id: 12 });
  await socket.hear();
  client.close();
  const again = await join();
  assert.equal((await again.socket.hear()).receiver_id, 12);
});

test("a message of ours that was stored before the reload is recognised", async (t) => {
  const { join } = await stage(t);
  const [id] = await leave(join, ["a"]);
  const { client, told, socket } = await join({}, { last_seq: 1 });
  socket.messages({ seq: 1, id, sender: { id: MARIA, name: "maria" } });
  assert.equal((await told.next("ack")).id, id);
  assert.deepEqual(client.waiting, []);
  await socket.hear();
  assert.deepEqual(await saidOf(socket), []);
});

test("a page that does not say who it is for has what waits, as it is the same tab", async (t) => {
  const { join, enter } = await stage(t);
  await leave(join, ["a"]);
  assert.deepEqual(textsOf(enter().client.waiting), ["a"]);
});

test("another tab and another room have nothing of it", async (t) => {
  const { server, join, enter } = await stage(t);
  await leave(join, ["a"]);
  server.url = server.url.replace("lobby", "kitchen");
  assert.deepEqual(enter().client.waiting, []);
  server.url = server.url.replace("kitchen", "lobby");
  new Tab().open();
  assert.deepEqual(enter().client.waiting, []);
});

test("what another user left stays where it is, untold, until that user is back", async (t) => {
  const { server, join, enter } = await stage(t);
  const ids = await leave(join, ["from maria"]);
  const luis = enter({ user: LUIS });
  assert.deepEqual(luis.client.waiting, []);
  luis.client.send("from luis");
  const socket = await server.next();
  socket.welcome({ user: LUIS });
  await luis.told.state("connected");
  assert.deepEqual(textsOf(await saidOf(socket)), ["from luis"]);
  assert.deepEqual(luis.told.of("error"), []);
  luis.client.close();
  const { client, socket: hers } = await join({ user: { id: MARIA } });
  assert.deepEqual(client.waiting, [{ id: ids[0], text: "from maria" }]);
  assert.deepEqual((await saidOf(hers)).map(({ id }) => id), ids);
});

test("where somebody else has signed in before the reload, nothing goes out, and what waited is told once", async (t) => {
  const { server, join, enter } = await stage(t);
  await leave(join, ["from maria"]);
  const { client, told } = enter();
  const socket = await server.next();
  socket.welcome({ user: LUIS });
  const { code, text, retrying } = await told.next("error");
  assert.deepEqual([code, text, retrying], ["other_user", "from maria", false]);
  assert.deepEqual(await saidOf(socket), []);
  assert.deepEqual(client.waiting, []);
  client.close();
  assert.deepEqual(enter({ user: { id: MARIA } }).client.waiting, []);
});

test("what was sent before it was known who we are belongs to the first one we are", async (t) => {
  const { server, tab, join, enter } = await stage(t);
  const { client, told } = enter();
  client.send("from maria");
  const socket = await server.next();
  socket.welcome();
  await told.state("connected");
  assert.deepEqual([...tab.kept.keys()].map((key) => key.split(" ").slice(2)), [[], [String(MARIA)]]);
  client.close();
  assert.deepEqual(enter({ user: LUIS }).client.waiting, []);
  await server.next();
  assert.deepEqual(textsOf((await join({ user: { id: MARIA } })).client.waiting), ["from maria"]);
});

test("in a tab that has forgotten who was here, what waits is there when the welcome is told", async (t) => {
  const { server, tab, join, enter } = await stage(t);
  await leave(join, ["a"]);
  const { host, pathname } = new URL(server.url);
  tab.kept.delete(`unsent ${host}${pathname}`);
  let seen;
  const { client, told } = enter({ onWelcome: () => { seen = textsOf(client.waiting); } });
  client.send("b");
  (await server.next()).welcome();
  await told.state("connected");
  assert.deepEqual(seen, ["a", "b"]);
});

for (const [what, fault] of [
  ["switched off", (tab) => Object.defineProperty(tab, "blocked", { get() { throw new Error("SecurityError"); } })],
  ["full", (tab) => { tab.storage.setItem = () => { throw new Error("QuotaExceededError"); }; }],
  ["not there at all", (tab) => { tab.blocked = null; tab.storage = undefined; }],
  ["full of something else", (tab) => { tab.storage.getItem = () => '{"not":"ours"}'; }],
  ["broken", (tab) => { tab.storage.getItem = () => "{"; }],
]) {
  test(`with a storage that is ${what}, the page itself still loses nothing`, async (t) => {
    const { server, tab, join } = await stage(t);
    fault(tab);
    tab.open();
    const { client, told, socket } = await join();
    const id = client.send("a");
    await socket.hear();
    socket.cut();
    await told.state("waiting");
    pass(250);
    const again = await server.next();
    again.welcome();
    assert.equal((await again.hear()).id, id);
    again.say({ type: "ack", id, seq: 1, sent_at: "", duplicate: false });
    await told.next("ack");
    assert.deepEqual(client.waiting, []);
  });
}

test("of what is kept, only what is a message is taken", async (t) => {
  const { server, tab, enter } = await stage(t);
  const { host, pathname } = new URL(server.url);
  tab.kept.set(`unsent ${host}${pathname} 7`, '[{"id":"c-1","text":"a"},{"id":2,"text":"b"},{"id":"c-3"},{}]');
  assert.deepEqual(enter({ user: { id: MARIA } }).client.waiting, [{ id: "c-1", text: "a" }]);
});
