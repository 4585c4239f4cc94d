// @ts-check
/**
 * The state of the connection, in words and colour.
 *
 * @import {State} from "./chat-types.js"
 */
import { make, part, takeFocus } from "./dom.js";
import { say } from "./texts.js";

const status = part("status", HTMLElement);
const tryNow = part("try-now", HTMLButtonElement);
const field = part("message", HTMLTextAreaElement);

/** Words for close codes. @type {Record<number, string>} */
const REASONS = {
  4403: say("You may not enter this room"),
  4404: say("There is no such room"),
  4429: say("There are too many connections"),
};
/** Words for states; `waiting` has a countdown, `refused` its reason. @type {Record<string, string>} */
const STATES = {
  connecting: say("Connecting"),
  connected: say("Connected"),
  offline: say("Offline"),
  "signed-out": say("Signed out"),
};

let countdown = 0;

/** Why the connection ended, where there is more to say than that it did. @param {State} state */
export const reasonOf = (state) => REASONS[state.code ?? 0];

/** @param {State} state */
export function show(state) {
  clearInterval(countdown);
  offerToTry(state.name);
  status.dataset.state = state.name;
  if (state.name === "waiting") countDown(state.until ?? 0);
  else status.textContent = STATES[state.name] ?? reasonOf(state) ?? say("Disconnected");
}

/** @param {State["name"]} name */
function offerToTry(name) {
  if (name === "waiting" || name === "offline") tryNow.hidden = false;
  else if (name !== "connecting") {
    // While it tries, the button stays where the finger is.
    takeFocus(tryNow, field);
    tryNow.hidden = true;
  }
}

/** @param {number} until */
function countDown(until) {
  // Only the first word is spoken: nobody wants to hear the seconds counted.
  const seconds = make("span");
  seconds.setAttribute("aria-hidden", "true");
  status.replaceChildren(say("Reconnecting"), " ", seconds);
  const tick = () => {
    seconds.textContent = say("in {n} s", { n: Math.max(1, Math.ceil((until - Date.now()) / 1000)) });
  };
  tick();
  countdown = window.setInterval(tick, 1000);
}
