import assert from "node:assert/strict";
import { test } from "node:test";
import { pass, saidOf, stage } from "./stage.js";

const HOUR = 3_600_000;

/** A time so many ms from now, as servers write it. */
const inMs = (ms) => new Date(Date.now() + ms).toISOString();

/** A token function: gives t1, t2 … or what `next` was set to. */
function purse() {
  const purse = { asked: 0, next: undefined };
  purse.token = async () => {
    purse.asked++;
    return purse.next ? purse.next() : `t${purse.asked}`;
  };
  return purse;
}

test("a token that is a text is shown each time", async (t) => {
  const { server, join } = await stage(t);
  const { told, socket } = await join({ token: "t" }, { expires_at: inMs(HOUR) });
  assert.deepEqual(socket.query, { token: "t" });
  socket.cut();
  await told.state("waiting");
  pass(250);
  assert.equal((await server.next()).query.token, "t");
});

test("a function is asked before each connection", async (t) => {
  const { server, join } = await stage(t);
  const { token } = purse();
  const { told, socket } = await join({ token });
  assert.equal(socket.query.token, "t1");
  socket.cut();
  await told.state("waiting");
  pass(250);
  assert.equal((await server.next()).query.token, "t2");
});

test("a function that fails, or never answers, is asked again with a pause", async (t) => {
  const { server, enter } = await stage(t);
  const tokens = purse();
  tokens.next = () => { throw new Error("no network"); };
  const { told } = enter({ token: tokens.token });
  const { until, reason } = await told.state("waiting");
  assert.deepEqual([until, reason], [Date.now() + 250, "Error: no network"]);
  let answer;
  tokens.next = () => new Promise((resolve) => { answer = resolve; });
  pass(250);
  await told.state("connecting");
  pass(15_000);
  await told.state("waiting");
  tokens.next = undefined;
  pass(500);
  const socket = await server.next();
  assert.equal(socket.query.token, "t3");
  answer("late");
  socket.welcome();
  await told.state("connected");
  assert.equal(tokens.asked, 3);
});

test("who leaves while the function is asked does not connect", async (t) => {
  const { opened, enter } = await stage(t);
  let answer;
  const { client, told } = enter({ token: () => new Promise((resolve) => { answer = resolve; }) });
  await told.state("connecting");
  client.close();
  answer("t");
  await new Promise(setImmediate);
  assert.equal(told.all.at(-1).what.name, "closed");
  assert.deepEqual(opened, []);
});

for (const [life, before] of [[HOUR, 30_000], [100_000, 10_000], [2_000, 200]]) {
  test(`of a life of ${life / 1000} s the next token is asked for ${before / 1000} s before the end`, async (t) => {
    const { join } = await stage(t);
    const tokens = purse();
    const { socket } = await join({ token: tokens.token }, { expires_at: inMs(life) });
    const end = Date.now() + life;
    await quietly(socket, end - before - 1 - Date.now());
    assert.equal(tokens.asked, 1);
    pass(1);
    assert.deepEqual(await socket.hear(), { type: "token", token: "t2" });
    socket.say({ type: "token", expires_at: inMs(life) });
    await quietly(socket, life - before - 1);
    assert.equal(tokens.asked, 2);
    pass(1);
    assert.deepEqual(await socket.hear(), { type: "token", token: "t3" });
  });
}

/** Lets time pass on a connection that is alive, where the client says nothing. */
async function quietly(socket, ms) {
  assert.deepEqual(await saidOf(socket), []);
  for (let rest = ms; rest > 0; rest -= 15_000) {
    pass(Math.min(rest, 15_000));
    assert.deepEqual(await saidOf(socket), []);
  }
}

test("the end is told by the server's clock, whatever ours says", async (t) => {
  const { join } = await stage(t);
  const tokens = purse();
  const ahead = 5 * HOUR;
  const { socket } = await join(
    { token: tokens.token }, { server_time: inMs(ahead), expires_at: inMs(ahead + 20_000) });
  await quietly(socket, 17_999);
  assert.equal(tokens.asked, 1);
  pass(1);
  await socket.hear();
  socket.say({ type: "token", expires_at: inMs(ahead + 20_000) });
  await quietly(socket, 17_999);
  pass(1);
  await socket.hear();
});

test("a function that fails is asked again until the end, and the page is told", async (t) => {
  const { join } = await stage(t);
  const tokens = purse();
  const { client, told, socket } = await join({ token: tokens.token }, { expires_at: inMs(100_000) });
  await quietly(socket, 89_999);
  tokens.next = () => { throw new Error("no network"); };
  pass(1);
  assert.deepEqual(await told.next("error"), { code: "no_token", detail: "Error: no network", retrying: true });
  tokens.next = undefined;
  await quietly(socket, 7_499); // 5 to 10 s, by chance.
  pass(1);
  assert.equal((await socket.hear()).token, "t3");
  socket.say({ type: "token", expires_at: inMs(HOUR) });
  await quietly(socket, 15_000);
  assert.equal(tokens.asked, 3);
  assert.equal(client.state.name, "connected");
});

test("a token that is refused is followed by another", async (t) => {
  const { join } = await stage(t);
  const tokens = purse();
  const { client, told, socket } = await join({ token: tokens.token }, { expires_at: inMs(20_000) });
  pass(18_000);
  await socket.hear();
  const id = client.send("hola");
  await socket.hear();
  socket.say({ type: "error", code: "forbidden", detail: "You may not do that here.", id });
  assert.equal((await told.next("error")).retrying, false);
  socket.say({ type: "error", code: "forbidden", detail: "The token is for another user or room." });
  const { code, retrying } = await told.next("error");
  assert.deepEqual([code, retrying], ["forbidden", true]);
  await quietly(socket, 7_499);
  pass(1);
  assert.equal((await socket.hear()).token, "t3");
  socket.say({ type: "token", expires_at: inMs(HOUR) });
  socket.say({ type: "error", code: "forbidden", detail: "Not here." });
  assert.equal((await told.next("error")).retrying, false);
});

test("a token that has run out all the same is followed by a connection with another", async (t) => {
  const { server, join } = await stage(t);
  const tokens = purse();
  const { told, socket } = await join({ token: tokens.token }, { expires_at: inMs(20_000), first_seq: 4, last_seq: 3 });
  socket.close(4401, "the token ran out");
  await told.state("waiting");
  pass(250);
  const again = await server.next();
  assert.deepEqual(again.query, { since: "3", epoch: "e1", token: "t2" });
  again.welcome({ resumed: true, expires_at: inMs(20_000) });
  await told.state("connected");
});

test("a token that is never good means signed out", async (t) => {
  const { server, enter } = await stage(t);
  const { told } = enter({ token: async () => "bad" });
  (await server.next()).close(4401);
  await told.state("signed-out");
});

test("a text that has run out means signed out", async (t) => {
  const { join } = await stage(t);
  const { told, socket } = await join({ token: "t" }, { expires_at: inMs(20_000) });
  await quietly(socket, 19_999);
  socket.close(4401, "the token ran out");
  await told.state("signed-out");
});

test("a function that gives the same token again is not asked without end", async (t) => {
  const { join } = await stage(t);
  const tokens = purse();
  const expires_at = inMs(20_000);
  const { socket } = await join({ token: tokens.token }, { expires_at });
  pass(17_999);
  for (const wait of [1, 1_800, 1_000]) {
    await quietly(socket, wait - 1);
    pass(1);
    assert.equal((await socket.hear()).type, "token");
    socket.say({ type: "token", expires_at });
  }
  assert.equal(tokens.asked, 4);
});

test("where a cookie identifies us, no token is shown and none renewed", async (t) => {
  const { join } = await stage(t);
  const { socket } = await join({}, { expires_at: inMs(10_000) });
  assert.deepEqual(socket.query, {});
  await quietly(socket, 9_999);
});

test("nothing is renewed over a connection that is gone", async (t) => {
  const { server, join } = await stage(t);
  const tokens = purse();
  const { told, socket } = await join({ token: tokens.token }, { expires_at: inMs(20_000) });
  socket.cut();
  await told.state("waiting");
  pass(250);
  const again = await server.next();
  again.welcome({ expires_at: inMs(HOUR) });
  await told.state("connected");
  await quietly(again, 30_000);
  assert.equal(tokens.asked, 2);
});

for (const [how, good] of [["an answer", true], ["a failure", false]]) {
  test(`${how} that comes when the connection is gone is of no use to the next one`, async (t) => {
    const { server, join } = await stage(t);
    const tokens = purse();
    let late;
    const { told, socket } = await join({ token: tokens.token }, { expires_at: inMs(20_000) });
    tokens.next = () => new Promise((resolve, reject) => { late = good ? resolve : reject; });
    pass(18_000);
    assert.equal(tokens.asked, 2);
    socket.cut();
    await told.state("waiting");
    tokens.next = undefined;
    pass(500);
    const again = await server.next();
    again.welcome({ expires_at: inMs(HOUR) });
    await told.state("connected");
    late(new Error("late"));
    await quietly(again, 45_000);
    assert.equal(tokens.asked, 3);
    assert.deepEqual(told.of("error"), []);
  });
}
