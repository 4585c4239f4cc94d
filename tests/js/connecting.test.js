import assert from "node:assert/strict";
import { test } from "node:test";
import { pass, saidOf, sleep, stage } from "./stage.js";

test("the first connection has no cursor, the next ones have the newest seq and its epoch", async (t) => {
  const { server, join } = await stage(t);
  const { told, socket } = await join({}, { last_seq: 3 });
  assert.deepEqual(socket.query, {});
  socket.messages(2, 3);
  socket.messages(4);
  await told.next("messages", ([{ seq }]) => seq === 4);
  socket.cut();
  await told.state("waiting");
  pass(250);
  const again = await server.next();
  assert.deepEqual(again.query, { since: "4", epoch: "e1" });
  again.welcome({ resumed: true, last_seq: 5 });
  again.messages(5);
  await told.next("messages");
  assert.deepEqual(told.seqs, [2, 3, 4, 5]);
});

test("a connection lost before the first message of an empty room asks from its beginning", async (t) => {
  const { server, join } = await stage(t);
  const { told, socket } = await join({}, { first_seq: 9, last_seq: 8 });
  socket.cut();
  await told.state("waiting");
  pass(250);
  assert.deepEqual((await server.next()).query, { since: "8", epoch: "e1" });
});

test("where it is not resumed, cursor and epoch start afresh", async (t) => {
  const { server, join } = await stage(t);
  const { told, socket } = await join({}, { last_seq: 40 });
  socket.messages(40);
  await told.next("messages");
  socket.cut();
  await told.state("waiting");
  pass(250);
  const again = await server.next();
  again.welcome({ epoch: "e2", last_seq: 3 });
  again.messages(2, 3);
  await told.next("messages");
  again.cut();
  await told.state("waiting");
  pass(500);
  assert.deepEqual((await server.next()).query, { since: "3", epoch: "e2" });
  assert.deepEqual(told.seqs, [40, 2, 3]);
});

test("each message is told once, whatever comes twice", async (t) => {
  const { join } = await stage(t);
  const { told, socket } = await join({}, { last_seq: 3 });
  socket.messages(1, 2, 3);
  socket.messages(2, 3);
  socket.messages(3, 4);
  await told.next("messages", (list) => list.at(-1).seq === 4);
  assert.deepEqual(told.seqs, [1, 2, 3, 4]);
  assert.deepEqual(await saidOf(socket), []);
});

test("what lies before a gap is told, and the rest is asked for again", async (t) => {
  const { server, join } = await stage(t);
  const { told, socket } = await join({}, { last_seq: 2 });
  socket.messages(1, 2, 4);
  await told.state("waiting");
  pass(250);
  const again = await server.next();
  assert.equal(again.query.since, "2");
  again.welcome({ resumed: true, last_seq: 4 });
  again.messages(3, 4);
  await told.next("messages", (list) => list.at(-1).seq === 4);
  assert.deepEqual(told.seqs, [1, 2, 3, 4]);
});

for (const [code, state] of [
  [1003, "refused"], [1008, "refused"], [1009, "refused"],
  [4401, "signed-out"], [4403, "refused"], [4404, "refused"],
]) {
  for (const joined of [true, false]) {
    test(`close code ${code} ${joined ? "after" : "in place of"} the welcome means stay away`, async (t) => {
      const { server, tab, opened, enter } = await stage(t);
      const { client, told } = enter();
      const socket = await server.next();
      if (joined) socket.welcome();
      socket.close(code, "go");
      const { name, code: seen, reason, until } = await told.state(state);
      assert.deepEqual([name, seen, reason, until], [state, code, "go", undefined]);
      const before = told.all.length;
      for (const event of ["online", "focus", "visibilitychange", "offline", "freeze", "resume"]) tab.event(event);
      client.hurry();
      pass(600_000);
      assert.equal(told.all.length, before);
      assert.equal(opened.length, 1);
      // Until somebody asks for it.
      client.connect();
      (await server.next()).welcome();
      await told.state("connected");
    });
  }
}

for (const code of [1000, 1001, 1011, 1012, 1013, 4429]) {
  test(`close code ${code} without a word on when means come back with a pause`, async (t) => {
    const { server, join } = await stage(t);
    const { told, socket } = await join();
    socket.close(code, "later");
    const state = await told.state("waiting");
    assert.deepEqual(state, { name: "waiting", until: Date.now() + 250, code, reason: "later" });
    pass(249);
    assert.equal(told.all.at(-1).what, state);
    pass(1);
    (await server.next()).welcome();
    await told.state("connected");
  });
}

test("a server that refuses by HTTP is tried again with a pause", async (t) => {
  const { server, enter } = await stage(t);
  server.refuseNext(503);
  const { told } = enter();
  await told.state("waiting");
  pass(250);
  (await server.next()).welcome();
  await told.state("connected");
});

test("a server that says when to come back is obeyed, unless somebody cannot wait", async (t) => {
  const { server, tab, join } = await stage(t);
  const { client, told, socket } = await join();
  const leave = async (socket) => {
    socket.say({ type: "closing", code: 1012, reason: "restart", reconnect_after: 40.5 });
    socket.close(1012, "restart");
    return told.state("waiting");
  };
  const { until } = await leave(socket);
  assert.equal(until, Date.now() + 40_500);
  pass(5_000);
  for (const event of ["online", "focus", "visibilitychange", "pageshow"]) tab.event(event);
  tab.event("offline");
  tab.event("online");
  assert.equal(client.state.until, until);
  pass(35_499);
  assert.equal(client.state.name, "waiting");
  pass(1);
  const again = await server.next();
  again.welcome();
  await told.state("connected");
  await leave(again);
  client.hurry();
  assert.equal(client.state.until, Date.now() + 2_000);
  pass(2_000);
  await server.next();
});

test("pauses are a random part of a limit that doubles up to 30 s", async (t) => {
  const { server, chance, enter } = await stage(t);
  const { told } = enter();
  const pauses = [];
  for (const value of [1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0]) {
    chance.value = value;
    (await server.next()).cut();
    const { until } = await told.state("waiting");
    pauses.push(until - Date.now());
    pass(until - Date.now());
  }
  assert.deepEqual(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 15_000, 0]);
});

test("a connection that stood for a while starts the pauses anew, a short one does not", async (t) => {
  const { server, chance, join } = await stage(t);
  chance.value = 1;
  let { told, socket } = await join();
  const pauses = [];
  for (const stood of [1_000, 1_000, 11_000, 0]) {
    pass(stood);
    socket.cut();
    const { until } = await told.state("waiting");
    pauses.push(until - Date.now());
    pass(until - Date.now());
    socket = await server.next();
    socket.welcome();
    await told.state("connected");
  }
  assert.deepEqual(pauses, [500, 1_000, 500, 1_000]);
});

test("a silent connection is asked, and is good as long as it answers", async (t) => {
  const { join } = await stage(t);
  const { client, told, socket } = await join();
  for (let time = 1; time < 6; time++) {
    pass(25_000);
    assert.deepEqual(await socket.hear(), { type: "ping" });
    socket.say({ type: "pong", server_time: "2026-11-24T10:00:00.123Z" });
    socket.say({ type: "redacted", room: "lobby", seq: time });
    await told.next("redacted");
  }
  assert.equal(client.state.name, "connected");
});

test("who hears something all the time does not ask", async (t) => {
  const { join } = await stage(t);
  const { told, socket } = await join();
  for (let seq = 1; seq < 20; seq++) {
    pass(19_000);
    socket.messages(seq);
    await told.next("messages");
  }
  assert.deepEqual(await saidOf(socket), []);
});

test("a ping without an answer means that the connection is dead, and there is a new one", async (t) => {
  const { server, join } = await stage(t);
  const { client, told, socket } = await join({}, { first_seq: 9, last_seq: 8 });
  pass(25_000);
  assert.deepEqual(await socket.hear(), { type: "ping" });
  pass(9_999);
  assert.equal(client.state.name, "connected");
  pass(1);
  assert.equal((await told.state("waiting")).until, Date.now() + 250);
  assert.equal(await socket.left, 1000);
  pass(250);
  const again = await server.next();
  assert.equal(again.query.since, "8");
  again.welcome({ resumed: true, first_seq: 9, last_seq: 8 });
  await told.state("connected");
});

test("nothing that a given up connection still brings is told", async (t) => {
  const { server, join } = await stage(t);
  const { told, socket } = await join();
  pass(25_000);
  pass(10_000);
  await told.state("waiting");
  socket.messages(1);
  socket.close(4401);
  pass(250);
  const again = await server.next();
  again.welcome({ last_seq: 1 });
  again.messages(1);
  await told.next("messages");
  assert.deepEqual(told.seqs, [1]);
  assert.ok(!told.of("state").some(({ name }) => name === "signed-out"));
});

test("a server that does not say welcome in 15 s is given up", async (t) => {
  const { server, enter } = await stage(t);
  const { client, told } = enter();
  const socket = await server.next();
  pass(14_999);
  assert.equal(client.state.name, "connecting");
  pass(1);
  await told.state("waiting");
  await socket.left;
});

test("a server that says something else than welcome is given up after 10 s more", async (t) => {
  const { server, enter } = await stage(t);
  const { told } = enter();
  (await server.next()).say({ type: "redacted", room: "lobby", seq: 1 });
  await told.next("redacted");
  pass(10_000);
  await told.state("waiting");
});

for (const joined of [true, false]) {
  test(`a server that says closing ${joined ? "" : "before the welcome "}and does not close is left`, async (t) => {
    const { server, enter } = await stage(t);
    const { client, told } = enter();
    const socket = await server.next();
    if (joined) socket.welcome();
    socket.say({ type: "redacted", room: "lobby", seq: 1 });
    socket.say({ type: "closing", code: 1013, reason: "database", reconnect_after: 2 });
    socket.say({ type: "redacted", room: "lobby", seq: 2 });
    await told.next("redacted", (seq) => seq === 2);
    socket.messages(1);
    await told.next("messages");
    pass(10_000);
    assert.equal((await told.state("waiting")).until, Date.now() + 2_000);
    assert.equal(client.state.until, Date.now() + 2_000);
  });
}

test("without a network it waits, and is back as soon as there is one", async (t) => {
  const { server, tab, join } = await stage(t);
  const { client, told, socket } = await join();
  pass(60);
  tab.onLine = false;
  tab.event("offline");
  const { until } = await told.state("offline");
  assert.equal(until, Date.now() + 10_000);
  assert.equal(await socket.left, 1000);
  pass(3_000);
  tab.onLine = true;
  tab.event("online");
  assert.deepEqual([client.state.name, client.state.until], ["waiting", Date.now()]);
  pass(0);
  (await server.next()).welcome();
  await told.state("connected");
});

test("a browser that is wrong about the network is not believed for ever", async (t) => {
  const { server, tab, join } = await stage(t);
  const { told } = await join();
  tab.onLine = false;
  tab.event("offline");
  await told.state("offline");
  pass(10_000);
  (await server.next()).welcome();
  await told.state("connected");
});

test("a network that is lost while it waits is told, and changes nothing else", async (t) => {
  const { tab, join } = await stage(t);
  const { client, told, socket } = await join();
  socket.cut();
  const { until } = await told.state("waiting");
  tab.onLine = false;
  tab.event("offline");
  assert.deepEqual([client.state.name, client.state.until], ["offline", until]);
});

for (const event of ["visibilitychange", "focus", "pageshow", "resume", "online"]) {
  test(`on ${event} a connection is asked at once, and given up soon`, async (t) => {
    const { tab, join } = await stage(t);
    const { client, told, socket } = await join();
    tab.event(event);
    assert.deepEqual(await socket.hear(), { type: "ping" });
    pass(3_000);
    tab.event(event); // No second question, no new time.
    pass(1_999);
    assert.equal(client.state.name, "connected");
    pass(1);
    await told.state("waiting");
    assert.equal(await socket.left, 1000);
  });

  test(`on ${event} what would be tried later is tried now`, async (t) => {
    const { server, tab, chance, enter } = await stage(t);
    const { client, told } = enter();
    chance.value = 1;
    for (let time = 0; time < 6; time++) {
      (await server.next()).cut();
      const { until } = await told.state("waiting");
      if (time < 5) pass(until - Date.now());
    }
    pass(500);
    tab.event(event);
    assert.equal(client.state.until, Date.now() + 1_500); // The last try is half a second ago.
    pass(500);
    tab.event(event);
    pass(1_000);
    (await server.next()).welcome();
    await told.state("connected");
  });
}

for (const [before, after] of [["freeze", "resume"], ["pagehide", "pageshow"]]) {
  test(`on ${before} a tab lets its connection go, and on ${after} it is back at once`, async (t) => {
    const { server, tab, join } = await stage(t);
    const { client, told, socket } = await join({}, { last_seq: 1 });
    socket.messages(1);
    await told.next("messages");
    pass(5_000);
    tab.event(before);
    assert.equal(await socket.left, 1000);
    assert.equal(client.state.name, "waiting");
    sleep(3_600_000);
    tab.event(after);
    pass(0);
    const again = await server.next();
    assert.equal(again.query.since, "1");
    again.welcome({ resumed: true, last_seq: 2 });
    again.messages(2);
    await told.next("messages");
    assert.deepEqual(told.seqs, [1, 2]);
  });
}

test("a tab that says it freezes and goes on is back by itself", async (t) => {
  const { server, tab, join } = await stage(t);
  const { told } = await join();
  tab.event("freeze");
  pass(1_000);
  (await server.next()).welcome();
  await told.state("connected");
});

test("a machine that slept asks its connection with the next beat", async (t) => {
  const { join } = await stage(t);
  const { socket } = await join();
  sleep(3_600_000);
  pass(5_000);
  assert.deepEqual(await socket.hear(), { type: "ping" });
});

test("a pause that was slept through is over with the next beat", async (t) => {
  const { server, tab, join } = await stage(t);
  const { told, socket } = await join();
  socket.say({ type: "closing", code: 1012, reason: "restart", reconnect_after: 3_000 });
  socket.close(1012);
  await told.state("waiting");
  sleep(3_600_000);
  pass(5_000);
  await server.next();
  tab.event("focus"); // Harmless while it connects.
});

test("hurry is of no use more than every 2 s, nor while there is a connection", async (t) => {
  const { server, join } = await stage(t);
  const { client, told, socket } = await join();
  client.hurry();
  assert.equal(client.state.name, "connected");
  pass(10_000);
  socket.cut();
  await told.state("waiting");
  client.hurry();
  const { until } = await told.state("waiting");
  assert.equal(until, Date.now());
  pass(0);
  (await server.next()).cut();
  await told.state("waiting");
  client.hurry();
  assert.equal(client.state.until, Date.now() + 500); // It was to be tried before that anyway.
});

test("who connects by hand is not torn away by the try that was planned", async (t) => {
  const { server, opened, join } = await stage(t);
  const { client, told, socket } = await join();
  socket.cut();
  await told.state("waiting");
  client.connect();
  (await server.next()).welcome();
  await told.state("connected");
  pass(15_000);
  assert.equal(client.state.name, "connected");
  assert.equal(opened.length, 2);
});

test("a callback that throws breaks nothing, and is not passed over in silence", async (t) => {
  const { join } = await stage(t);
  const thrown = [];
  process.setUncaughtExceptionCaptureCallback((error) => thrown.push(error.message));
  t.after(() => process.setUncaughtExceptionCaptureCallback(null));
  const faulty = (name) => () => { throw new Error(name); };
  const names = ["Welcome", "Messages", "Ack"];
  const { client, told, socket } = await join(
    Object.fromEntries(names.map((name) => [`on${name}`, faulty(name)])), { last_seq: 1 });
  client.send("hola");
  const { id } = await socket.hear();
  socket.messages(1);
  socket.say({ type: "ack", id, seq: 2, sent_at: "2026-11-24T10:00:00.123Z", duplicate: false });
  socket.say({ type: "redacted", room: "lobby", seq: 1 });
  await told.next("redacted");
  assert.deepEqual(client.waiting, []);
  assert.deepEqual(thrown, names);
});

test("who leaves stays away", async (t) => {
  const { tab, opened, join } = await stage(t);
  const { client, told, socket } = await join();
  client.close();
  assert.equal(await socket.left, 1000);
  await told.state("closed");
  for (const event of ["online", "focus", "offline", "freeze", "resume"]) tab.event(event);
  client.hurry();
  client.connect();
  pass(600_000);
  assert.equal(told.all.at(-1).what.name, "closed");
  assert.equal(opened.length, 1);
});

test("who leaves before the first connection never makes one", async (t) => {
  const { enter } = await stage(t);
  const { client, told } = enter();
  client.close();
  await Promise.resolve();
  assert.deepEqual(told.of("state"), [{ name: "closed" }]);
});

test("frames are shown as they are, both ways", async (t) => {
  const { join } = await stage(t);
  const frames = [];
  const { client, socket } = await join({ onFrame: (...frame) => frames.push(frame) });
  client.typing();
  await socket.hear();
  assert.deepEqual(frames.map(([direction, text]) => [direction, JSON.parse(text).type]),
    [["in", "welcome"], ["out", "typing"]]);
});
