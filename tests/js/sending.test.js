import assert from "node:assert/strict";
import { test } from "node:test";
import { MARIA } from "./server.js";
import { pass, saidOf, stage } from "./stage.js";

const WHEN = "2026-11-24T10:00:00.123Z";

/** @param {string} id  @param {number} seq */
const ackOf = (id, seq, duplicate = false) => ({ type: "ack", id, seq, sent_at: WHEN, duplicate });
const textsOf = (frames) => frames.map(({ text }) => text);

/** The next frames that the client says. */
async function hear(socket, count) {
  const frames = [];
  while (frames.length < count) frames.push(await socket.hear());
  return frames;
}

test("acks are matched by id, in whatever order they come", async (t) => {
  const { join } = await stage(t);
  const { client, told, socket } = await join();
  const ids = ["a", "b", "c"].map((text) => client.send(text));
  const frames = await hear(socket, 3);
  assert.deepEqual(frames, ids.map((id, at) => ({ type: "send", id, text: "abc"[at] })));
  assert.equal(new Set(ids).size, 3);
  for (const id of ids) assert.match(id, /^c-[0-9a-f]{32}$/);
  assert.deepEqual(client.waiting, ids.map((id, at) => ({ id, text: "abc"[at] })));
  socket.say(ackOf(ids[2], 3));
  socket.say(ackOf("c-of-nobody", 9));
  socket.say(ackOf(ids[0], 1));
  socket.say(ackOf(ids[0], 1, true));
  socket.say(ackOf(ids[1], 2));
  await told.next("ack", ({ id }) => id === ids[1]);
  assert.deepEqual(told.of("ack").map(({ id, seq }) => [id, seq]), [[ids[2], 3], [ids[0], 1], [ids[1], 2]]);
  assert.deepEqual(client.waiting, []);
  assert.deepEqual(await saidOf(socket), []);
});

test("a message of ours in the log is as good as its ack; the same id of somebody else is not", async (t) => {
  const { join } = await stage(t);
  const { client, told, socket } = await join();
  const id = client.send("hola");
  await socket.hear();
  socket.messages({ seq: 1, id });
  await told.next("messages");
  assert.equal(client.waiting.length, 1);
  socket.messages({ seq: 2, id, sender: MARIA });
  assert.deepEqual(await told.next("ack"), {
    seq: 2, id, sender: MARIA, receiver: null, text: "text 2", sent_at: WHEN, duplicate: false,
  });
  socket.say(ackOf(id, 2));
  socket.say({ type: "redacted", seq: 1 });
  await told.next("redacted");
  assert.equal(told.of("ack").length, 1);
});

test("what was not acked is said again on the next connection, under the same ids, in the same order", async (t) => {
  const { server, join } = await stage(t);
  const { client, told, socket } = await join();
  const ids = ["a", "b", "c"].map((text) => client.send(text));
  await hear(socket, 3);
  socket.say(ackOf(ids[1], 1));
  await told.next("ack");
  socket.cut();
  await told.state("waiting");
  ids.push(client.send("d"));
  pass(250);
  const again = await server.next();
  again.welcome();
  const frames = await hear(again, 3);
  assert.deepEqual(frames.map(({ id, text }) => [id, text]), [[ids[0], "a"], [ids[2], "c"], [ids[3], "d"]]);
  for (const { id } of frames) again.say(ackOf(id, 2, true));
  await told.next("ack", ({ id }) => id === ids[3]);
  assert.deepEqual(client.waiting, []);
  assert.deepEqual(await saidOf(again), []);
});

test("what is sent before the first welcome waits for it", async (t) => {
  const { server, enter } = await stage(t);
  const { client, told } = enter();
  const id = client.send("hola");
  const socket = await server.next();
  socket.welcome();
  assert.equal((await socket.hear()).id, id);
  socket.say(ackOf(id, 1));
  await told.next("ack");
});

test("what nobody answers is said once more after 30 s", async (t) => {
  const { join } = await stage(t);
  const { client, told, socket } = await join();
  const id = client.send("hola");
  await socket.hear();
  for (let second = 0; second < 30; second += 10) {
    pass(10_000);
    socket.say({ type: "redacted", seq: 1 }); // The connection is alive.
    await told.next("redacted");
  }
  assert.deepEqual(await saidOf(socket), []);
  pass(5_000);
  const again = await socket.hear();
  assert.deepEqual([again.id, again.text], [id, "hola"]);
});

test("at most 16 messages are under way", async (t) => {
  const { join } = await stage(t);
  const { client, socket } = await join();
  const ids = Array.from({ length: 20 }, (_, at) => client.send(`${at}`));
  await hear(socket, 16);
  assert.deepEqual(await saidOf(socket), []);
  for (const id of ids.slice(0, 3)) socket.say(ackOf(id, 1));
  assert.deepEqual(textsOf(await hear(socket, 3)), ["16", "17", "18"]);
});

test("after rate_limited one is sent at a time, after the pause that was asked for, in order", async (t) => {
  const { join } = await stage(t);
  const { client, told, socket } = await join();
  const ids = ["a", "b", "c", "d"].map((text) => client.send(text));
  await hear(socket, 4);
  socket.say(ackOf(ids[0], 1));
  for (const id of ids.slice(1)) {
    socket.say({ type: "error", code: "rate_limited", detail: "Slow down.", id, retry_after: 0.8 });
  }
  const failure = await told.next("error", ({ id }) => id === ids[3]);
  assert.deepEqual(failure, {
    type: "error", code: "rate_limited", detail: "Slow down.", id: ids[3], retry_after: 0.8, text: "d", retrying: true,
  });
  assert.deepEqual(textsOf(client.waiting), ["b", "c", "d"]);
  client.send("e");
  pass(899); // A little more than 0.8 s: by 1/8, as chance is 0.5 here.
  assert.deepEqual(await saidOf(socket), []);
  pass(1);
  for (const text of ["b", "c", "d", "e"]) {
    assert.deepEqual(textsOf(await saidOf(socket)), [text]);
    socket.say(ackOf(client.waiting[0].id, 2));
    await told.next("ack");
  }
  // All is sent: several may be under way again.
  client.send("f");
  client.send("g");
  assert.deepEqual(textsOf(await saidOf(socket)), ["f", "g"]);
});

test("unavailable is tried again under the same id, after a second where no time was given", async (t) => {
  const { join } = await stage(t);
  const { client, told, socket } = await join();
  const id = client.send("hola");
  await socket.hear();
  socket.say({ type: "error", code: "unavailable", detail: "No database.", id });
  assert.equal((await told.next("error")).retrying, true);
  pass(1_124);
  assert.deepEqual(await saidOf(socket), []);
  pass(1);
  assert.equal((await socket.hear()).id, id);
});

for (const code of ["id_conflict", "forbidden", "text_empty", "unknown_receiver", "missing_receiver", "bad_frame"]) {
  test(`${code} is told with the text, and given up`, async (t) => {
    const { server, join } = await stage(t);
    const { client, told, socket } = await join();
    const ids = [client.send("a"), client.send("b")];
    await hear(socket, 2);
    socket.say({ type: "error", code, detail: "No.", id: ids[0] });
    const { text, id, retrying } = await told.next("error");
    assert.deepEqual([text, id, retrying], ["a", ids[0], false]);
    assert.deepEqual(client.waiting, [{ id: ids[1], text: "b" }]);
    socket.cut();
    await told.state("waiting");
    pass(250);
    const again = await server.next();
    again.welcome();
    assert.equal((await again.hear()).id, ids[1]);
  });
}

test("an error about no message of ours is told as it is", async (t) => {
  const { join } = await stage(t);
  const { told, socket } = await join();
  socket.say({ type: "error", code: "bad_json", detail: "Not JSON." });
  const { code, text, retrying } = await told.next("error");
  assert.deepEqual([code, text, retrying], ["bad_json", undefined, false]);
});

test("what cannot be stored is not sent", async (t) => {
  const { join } = await stage(t);
  const { client, socket } = await join({}, { limits: { text: 5, frame: 65536 } });
  assert.throws(() => client.send("123456"), RangeError);
  client.send("🙂".repeat(5)); // Five characters, ten of JavaScript's.
  client.send("a\0b\ud800c");
  assert.deepEqual(textsOf(await hear(socket, 2)), ["🙂".repeat(5), "a\ufffdb\ufffdc"]);
});

test("more than 200 do not wait", async (t) => {
  const { enter } = await stage(t);
  const { client } = enter();
  for (let count = 0; count < 200; count++) client.send("hola");
  assert.throws(() => client.send("one more"), RangeError);
  assert.equal(client.waiting.length, 200);
});

test("in a direct room the other one is the receiver, unless another is named", async (t) => {
  const { join } = await stage(t);
  const { client, socket } = await join({}, { room: "dm.7.12" });
  client.send("hola");
  client.send("you there", { receiver_id: 99 });
  assert.deepEqual((await hear(socket, 2)).map(({ receiver_id }) => receiver_id), [12, 99]);
});

test("what waits does not go out under the name of somebody who signed in meanwhile", async (t) => {
  const { server, tab, join } = await stage(t);
  const { client, told, socket } = await join();
  const id = client.send("from maria");
  await socket.hear();
  socket.close(4401);
  await told.state("signed-out");
  client.connect();
  const again = await server.next();
  again.welcome({ user: { id: 12, name: "luis" } });
  const { code, text, ...failure } = await told.next("error");
  assert.deepEqual([code, text, failure.id, failure.retrying], ["other_user", "from maria", id, false]);
  assert.deepEqual(await saidOf(again), []);
  assert.deepEqual([client.waiting, [...tab.kept.values()]], [[], ["12"]]);
  assert.equal(client.user.name, "luis");
});

// Older messages.

test("history is answered by id", async (t) => {
  const { join } = await stage(t);
  const { client, socket } = await join();
  const [first, second] = [client.history(763), client.history(700, 20)];
  const [one, two] = await hear(socket, 2);
  assert.deepEqual([one.before, one.limit, two.before, two.limit], [763, 50, 700, 20]);
  socket.say({ type: "history", id: two.id, room: "lobby", messages: [], more: false });
  socket.say({ type: "history", id: one.id, room: "lobby", messages: [], more: true });
  assert.deepEqual([(await first).more, (await second).more], [true, false]);
});

test("history that is refused, or whose connection ends, says so to who asked", async (t) => {
  const { join } = await stage(t);
  const { client, told, socket } = await join();
  const refused = client.history(763);
  socket.say({ type: "error", code: "rate_limited", detail: "Slow down.", id: (await socket.hear()).id, retry_after: 1 });
  await assert.rejects(refused, /Slow down/);
  assert.deepEqual(told.of("error"), []);
  const lost = client.history(763);
  socket.cut();
  await assert.rejects(lost, /lost/);
  await assert.rejects(client.history(763), /no connection/);
});
