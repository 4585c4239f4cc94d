// @ts-check
/**
 * The page /test-chat/{room}/: shows what a ChatClient tells, and hands it what is typed.
 * Owns the DOM of the page and nothing else; order, resuming and repeating are the client's.
 * Text of users reaches the document through textContent only.
 *
 * @typedef {import("./chat-client.js").Message} Message
 */
import { ChatClient } from "./chat-client.js";
import { noteFrame } from "./frames.js";

// Enough to read back; more would make the page slow. What is older is on the server.
const SHOWN_MOST = 1_000;
const AT_BOTTOM_PX = 48; // This near to the end counts as reading the newest.

/** @template {HTMLElement} E  @param {string} id  @param {new () => E} kind  @returns {E} */
function part(id, kind) {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new Error(`The page has no #${id}.`);
  return element;
}

const { room = "", root = "", userId, userName = "" } = part("chat", HTMLElement).dataset;
const log = part("log", HTMLElement);
const confirmed = part("confirmed", HTMLElement);
const outbox = part("outbox", HTMLElement);
const who = part("who", HTMLElement);
const status = part("status", HTMLElement);
const problem = part("problem", HTMLElement);
const composer = part("composer", HTMLFormElement);
const field = part("message", HTMLTextAreaElement);

const me = { id: Number(userId), name: userName };

/** @param {string} tag  @param {string} [className]  @param {string} [text] */
function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Messages.

/** @type {Map<number, HTMLElement>} */
const shown = new Map();
/** @type {Map<string, HTMLElement>} Messages of this page that are not in the log yet, by id. */
const pending = new Map();

const timeOnly = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const dayAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** @param {Date} when */
function timeOf(when) {
  const today = when.toDateString() === new Date().toDateString();
  const time = make("time", "", (today ? timeOnly : dayAndTime).format(when));
  time.setAttribute("datetime", when.toISOString());
  time.title = dayAndTime.format(when);
  return time;
}

/** @param {string} className  @param {string} name  @param {HTMLElement} when  @param {string} text */
function bubble(className, name, when, text) {
  const element = make("article", className);
  const head = make("header");
  const sender = make("span", "sender", name);
  sender.dir = "auto";
  head.append(sender, " ", when);
  const words = make("p", "text", text);
  words.dir = "auto";
  element.append(head, words);
  return element;
}

/** @param {Message} message */
function messageOf({ sender, sent_at, text, redacted }) {
  const className = sender.id === me.id ? "message own" : "message";
  const element = bubble(className, sender.name, timeOf(new Date(sent_at)), text);
  if (redacted) redact(element);
  return element;
}

/** @param {HTMLElement} element */
function redact(element) {
  element.querySelector(".text")?.replaceWith(make("p", "text gone", "This text was removed."));
}

// Who reads the newest goes on doing so when messages come, or when the log's box changes its size.
let following = true;

function follow() {
  if (following) log.scrollTop = log.scrollHeight;
}

log.addEventListener("scroll", () => {
  following = log.scrollHeight - log.scrollTop - log.clientHeight < AT_BOTTOM_PX;
});
new ResizeObserver(follow).observe(log);

/** @param {Message[]} messages */
function show(messages) {
  const added = document.createDocumentFragment();
  for (const message of messages.slice(-SHOWN_MOST)) {
    if (shown.has(message.seq)) continue;
    const element = messageOf(message);
    shown.set(message.seq, element);
    added.append(element);
  }
  for (const { id, sender } of messages) if (sender.id === me.id) forget(id);
  confirmed.append(added);
  for (const [seq, element] of shown) {
    if (shown.size <= SHOWN_MOST) break;
    element.remove();
    shown.delete(seq);
  }
  follow();
}

/** @param {string} id */
function forget(id) {
  pending.get(id)?.remove();
  pending.delete(id);
}

/** @param {string} id  @param {string} words */
function tellFate(id, words) {
  pending.get(id)?.querySelector(".fate")?.replaceChildren(words);
}

/** What the client will not send any more goes back to where it was typed. */
function takeBack() {
  const texts = Array.from(pending.values(), (element) => element.querySelector(".text")?.textContent ?? "");
  for (const id of [...pending.keys()]) forget(id);
  field.value = [...texts, field.value].filter(Boolean).join("\n");
  keepDraft();
}

/** @param {string} id  @param {string} text */
function showPending(id, text) {
  const element = bubble("message own pending", me.name, make("span", "fate", "Sending…"), text);
  pending.set(id, element);
  outbox.append(element);
  following = true;
  follow();
}

// The connection.

let countdown = 0;

/** Words for close codes. @type {Record<number, string>} */
const REASONS = {
  4403: "You may not enter this room",
  4404: "There is no such room",
  4429: "There are too many connections",
};
/** Words for states; `waiting` has a countdown, `refused` its reason. @type {Record<string, string>} */
const STATES = { connecting: "Connecting", connected: "Connected", offline: "Offline", "signed-out": "Signed out" };

/** @param {import("./chat-client.js").State} state */
function showState(state) {
  clearInterval(countdown);
  status.dataset.state = state.name;
  const reason = REASONS[state.code ?? 0];
  if (state.name === "waiting") countDown(state.until ?? 0);
  else status.textContent = STATES[state.name] ?? reason ?? "Disconnected";

  if (state.name === "signed-out" || state.name === "refused") takeBack();
  if (state.name === "connecting") complain("");
  else if (reason) complain(`${reason}.`);
  else if (state.name === "refused") complain("The server ended the connection. Reload the page to try again.");
  else if (state.name === "signed-out") {
    const link = make("a", "", "Sign in again");
    link.setAttribute("href", `${root}/login?next=${encodeURIComponent(location.pathname)}`);
    complain("You are signed out. What you typed is kept. ", link);
  }
}

/** @param {number} until */
function countDown(until) {
  // Only the first word is spoken: nobody wants to hear the seconds counted.
  const seconds = make("span");
  seconds.ariaHidden = "true";
  status.replaceChildren("Reconnecting", seconds);
  const tick = () => {
    seconds.textContent = ` in ${Math.max(1, Math.ceil((until - Date.now()) / 1000))} s`;
  };
  tick();
  countdown = window.setInterval(tick, 1000);
}

/** @param {string} text  @param {Node[]} more */
function complain(text, ...more) {
  problem.replaceChildren(...(text ? [text, ...more] : []));
}

// Talking.

/** @type {string | undefined} The message that the complaint beside the field is about. */
let delayed;

const client = new ChatClient(`${root}/ws/chat/${encodeURIComponent(room)}/`, {
  onFrame: noteFrame,
  onState: showState,
  onMessages: show,
  onWelcome(welcome) {
    Object.assign(me, welcome.user);
    who.textContent = who.title = me.name;
    if (welcome.resumed) return;
    shown.clear();
    confirmed.replaceChildren();
  },
  onRedacted(seq) {
    const element = shown.get(seq);
    if (element) redact(element);
  },
  onAck(ack) {
    tellFate(ack.id, "Sent");
    if (ack.id === delayed) complain("");
  },
  onError(failure) {
    if (failure.retrying) {
      delayed = failure.id;
      return complain(`${failure.detail} Your message is kept and sent again by itself.`);
    }
    complain(failure.detail);
    if (failure.id === undefined || failure.text === undefined) return;
    // Given up: the words go back into the field, or stay where they are if the field is in use.
    if (field.value === "") {
      forget(failure.id);
      field.value = failure.text;
      keepDraft();
    } else {
      pending.get(failure.id)?.classList.add("failed");
      tellFate(failure.id, "Not sent");
    }
  },
});

function submit() {
  const text = field.value;
  if (text.trim() === "") return;
  // Where nothing can be sent any more, the sentence beside the field says so; the text stays.
  if (client.state.name === "signed-out" || client.state.name === "refused") return field.focus();
  try {
    showPending(client.send(text), text);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return complain(error.message);
  }
  complain("");
  field.value = "";
  keepDraft();
  field.focus();
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
field.addEventListener("keydown", (event) => {
  // While an input method composes, Enter chooses a word.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});

// What is typed survives a reload and a new sign-in in this tab, under the same name. (A guest who comes
// back has a new id.) Storage may be switched off.
const draftKey = `draft ${root} ${room} ${userName}`;

function keepDraft() {
  try {
    sessionStorage.setItem(draftKey, field.value);
  } catch {
    // Then only the field keeps it.
  }
}

try {
  field.value ||= sessionStorage.getItem(draftKey) ?? "";
} catch {
  // As above.
}
field.addEventListener("input", keepDraft);
