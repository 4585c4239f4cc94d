// @ts-check
/**
 * The page /test-chat/{room}/: one ChatClient, and the parts of the page that show what it tells and hand it what
 * people do. Owns who is told what; each part owns its place in the page.
 *
 * @import {Failure, State} from "./chat-types.js"
 */
import { isDirect, me } from "./bubble.js";
import { ChatClient } from "./chat-client.js";
import * as composer from "./composer.js";
import * as conversation from "./conversation.js";
import { make, part } from "./dom.js";
import { noteFrame } from "./frames.js";
import * as outbox from "./outbox.js";
import * as people from "./people.js";
import * as reading from "./reading.js";
import * as status from "./status.js";
import { say } from "./texts.js";
import * as typing from "./typing.js";

const { room = "", root = "" } = part("chat", HTMLElement).dataset;
const who = part("who", HTMLElement);
const { complain } = composer;
const PATIENCE_MS = 10_000; // With what the server is asked over HTTP.

// What the client tells.

const client = new ChatClient(`${root}/ws/chat/${encodeURIComponent(room)}/`, {
  user: { ...me },
  onFrame: noteFrame,
  onState: showState,
  onPresence: people.show,
  onTyping: typing.types,
  onRead: reading.wasRead,
  onRedacted: conversation.redact,
  onWelcome(welcome) {
    Object.assign(me, welcome.user);
    who.textContent = who.title = me.name;
    composer.limitTo(client.limits.text);
    conversation.welcomed(welcome);
    reading.welcomed(welcome);
  },
  onMessages(messages) {
    typing.said(messages);
    conversation.show(messages);
    reading.arrived(messages);
  },
  onAck(ack) {
    conversation.stored(ack);
    if (ack.id === delayed) complain("");
  },
  onError(failure) {
    if (failure.retrying) {
      delayed = failure.id;
      return complain(`${wordsFor(failure)} ${say("Your message is kept and sent again by itself.")}`);
    }
    complain(wordsFor(failure));
    if (failure.id !== undefined) outbox.refused(failure.id, submit, composer.keepDraft);
  },
});

/** @type {string | undefined} The message that the complaint beside the field is about. */
let delayed;

/** What people can do something about, in the language of the page. @type {Record<string, string>} */
const FAILURES = {
  rate_limited: say("You are sending too fast."),
  unavailable: say("The server cannot store anything just now."),
  forbidden: say("You may not do that here."),
  unknown_receiver: say("There is no such person any more."),
  id_conflict: say("The message was not sent."),
  other_user: say("You are signed in as somebody else now."),
};

/** @param {Pick<Failure, "code" | "detail">} failure */
function wordsFor({ code, detail }) {
  return FAILURES[code] ?? detail;
}

/** @param {State} state */
function showState(state) {
  status.show(state);
  const reason = status.reasonOf(state);
  if (state.name === "signed-out" || state.name === "refused") {
    outbox.end();
    composer.keepDraft();
  }
  if (state.name === "connecting") complain("");
  else if (reason) complain(`${reason}.`);
  else if (state.name === "refused") complain(say("The server ended the connection. Reload the page to try again."));
  else if (state.name === "signed-out") {
    const link = make("a", "", say("Sign in again"));
    link.setAttribute("href", `${root}/login?next=${encodeURIComponent(location.pathname)}`);
    complain(say("You are signed out. What you typed is kept."), " ", link);
  }
}

// What people do.

/** Takes a text on its way, or says why not. @param {string} text */
function submit(text) {
  client.hurry(); // Who presses Send does not want to wait.
  if (text.trim() === "") return false;
  // Where nothing can be sent any more, the sentence beside the field says so; the text stays.
  if (client.state.name === "signed-out" || client.state.name === "refused") return false;
  const [length, most] = [composer.lengthOf(text), client.limits.text];
  complain(length > most ? say("This is too long: {length} of {most} characters.", { length, most }) : "");
  if (length > most) return false;
  try {
    conversation.showDraft(client.send(text), text);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    complain(say("Too many messages are waiting to be sent."));
    return false;
  }
  reading.answered();
  return true;
}

/** @param {string} path  @param {RequestInit} [how] */
async function ask(path, how) {
  const answer = await fetch(`${root}/api/${path}`, { signal: AbortSignal.timeout(PATIENCE_MS), ...how });
  if (answer.ok) return answer.json();
  throw new Error(wordsFor(await answer.json().catch(() => ({ detail: "" }))));
}

/** Goes to the room for two. @param {number} user_id */
async function writeTo(user_id) {
  const headers = { "Content-Type": "application/json" };
  try {
    const direct = await ask("direct", { method: "POST", headers, body: JSON.stringify({ user_id }) });
    location.assign(`${root}/test-chat/${direct.room}/`);
  } catch (error) {
    complain(`${say("That did not work.")} ${error instanceof Error ? error.message : error}`);
  }
}

/** What this user has read, and in a room for two the other one. Without an answer nothing is known, nor lost. */
async function marks() {
  const path = `rooms/${encodeURIComponent(room)}/members`;
  // Of many members this user is the first on the page that begins after the id before theirs.
  const page = isDirect ? path : `${path}?after=${me.id - 1}`;
  return ask(page).then(({ members }) => members, () => []);
}

part("try-now", HTMLButtonElement).addEventListener("click", () => client.hurry());
conversation.start({
  history: (before, limit) => client.history(before, limit),
  connected: () => client.state.name === "connected",
  complain,
  changed: reading.look,
});
reading.start({ read: (seq) => client.read(seq), marks });
people.start(writeTo);
composer.start({ submit, typed: () => client.typing() }, client.waiting.map(({ id }) => id));
// What the client has kept from before a reload.
for (const { id, text } of client.waiting) outbox.add(id, text);
