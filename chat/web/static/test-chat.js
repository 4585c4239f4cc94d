// @ts-check
/**
 * The page /test-chat/{room}/: shows what a ChatClient tells, and hands it what is typed.
 * Owns the DOM around the conversation; order, resuming and repeating are the client's.
 *
 * @import {State} from "./chat-types.js"
 */
import { ChatClient } from "./chat-client.js";
import * as conversation from "./conversation.js";
import { make, part } from "./dom.js";
import { noteFrame } from "./frames.js";

const { room = "", root = "", userName = "" } = part("chat", HTMLElement).dataset;
const who = part("who", HTMLElement);
const status = part("status", HTMLElement);
const tryNow = part("try-now", HTMLButtonElement);
const problem = part("problem", HTMLElement);
const composer = part("composer", HTMLFormElement);
const field = part("message", HTMLTextAreaElement);

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

/** @param {State} state */
function showState(state) {
  clearInterval(countdown);
  offerToTry(state.name);
  status.dataset.state = state.name;
  const reason = REASONS[state.code ?? 0];
  if (state.name === "waiting") countDown(state.until ?? 0);
  else status.textContent = STATES[state.name] ?? reason ?? "Disconnected";

  if (state.name === "signed-out" || state.name === "refused") {
    // What the client will not send any more goes back to where it was typed.
    field.value = [...conversation.takeOut(), field.value].filter(Boolean).join("\n");
    keepDraft();
  }
  if (state.name === "connecting") complain("");
  else if (reason) complain(`${reason}.`);
  else if (state.name === "refused") complain("The server ended the connection. Reload the page to try again.");
  else if (state.name === "signed-out") {
    const link = make("a", "", "Sign in again");
    link.setAttribute("href", `${root}/login?next=${encodeURIComponent(location.pathname)}`);
    complain("You are signed out. What you typed is kept. ", link);
  }
}

/** @param {State["name"]} name */
function offerToTry(name) {
  if (name === "waiting" || name === "offline") tryNow.hidden = false;
  else if (name !== "connecting") {
    // While it tries, the button stays where the finger is.
    if (document.activeElement === tryNow) field.focus();
    tryNow.hidden = true;
  }
}

tryNow.addEventListener("click", () => client.hurry());

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
  onMessages: conversation.show,
  onRedacted: conversation.redact,
  onWelcome(welcome) {
    who.textContent = who.title = welcome.user.name;
    conversation.welcomed(welcome);
  },
  onAck(ack) {
    conversation.tellFate(ack.id, "Sent");
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
      conversation.forget(failure.id);
      field.value = failure.text;
      keepDraft();
    } else {
      conversation.tellFate(failure.id, "Not sent", true);
    }
  },
});

conversation.olderFrom((before, limit) => client.history(before, limit), complain);

function submit() {
  client.hurry(); // Who presses Send does not want to wait.
  const text = field.value;
  if (text.trim() === "") return;
  // Where nothing can be sent any more, the sentence beside the field says so; the text stays.
  if (client.state.name === "signed-out" || client.state.name === "refused") return field.focus();
  try {
    conversation.showPending(client.send(text), text);
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
