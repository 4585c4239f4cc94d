// @ts-check
/**
 * The field where people type: its draft, its limit, and the sentence beside it that says what went wrong.
 * Sending is test-chat.js's.
 */
import { part } from "./dom.js";
import * as outbox from "./outbox.js";
import { say } from "./texts.js";

const NEAR = 0.9; // From this part of the limit on, it is shown.
const QUIET_MS = 1_000; // It is spoken when the typing pauses, not at every key.

const { room, root, userName } = part("chat", HTMLElement).dataset;
const problem = part("problem", HTMLElement);
const composer = part("composer", HTMLFormElement);
const field = part("message", HTMLTextAreaElement);
const left = part("left", HTMLElement);
const leftSpoken = part("left-spoken", HTMLElement);

let most = 4_000; // Characters; each welcome tells it anew.
let pause = 0;

/** @param {string} text  "": nothing is wrong  @param {(string | Node)[]} more */
export function complain(text, ...more) {
  problem.replaceChildren(...(text ? [text, ...more] : []));
}

/** How long a text is as the server counts it. @param {string} text */
export const lengthOf = (text) => Array.from(text).length;

/** @param {number} limit */
export function limitTo(limit) {
  most = limit;
  measure();
}

function measure() {
  // The first number is never below the second, and costs nothing.
  const rest = field.value.length < NEAR * most ? Infinity : most - lengthOf(field.value);
  const near = rest <= (1 - NEAR) * most;
  left.textContent = near ? restOf(rest) : "";
  field.setAttribute("aria-invalid", String(rest < 0));
  clearTimeout(pause);
  pause = window.setTimeout(() => { leftSpoken.textContent = left.textContent; }, QUIET_MS);
}

/** @param {number} rest */
function restOf(rest) {
  if (rest === 1) return say("1 character left");
  if (rest === -1) return say("1 character too many");
  return rest < 0 ? say("{n} characters too many", { n: -rest }) : say("{n} characters left", { n: rest });
}

// What is typed survives a reload and a new sign-in in this tab, under the same name. (A guest who comes
// back has a new id.) Storage may be switched off.
const draftKey = `draft ${root} ${room} ${userName}`;

/** Keeps what would be lost with the page: what is typed, and what was not sent. */
export function keepDraft() {
  try {
    sessionStorage.setItem(draftKey, JSON.stringify({ text: field.value, left: outbox.left() }));
  } catch {
    // Then only the page keeps it.
  }
}

/** @param {Set<string>} waiting ids of messages that are sent all the same */
function draft(waiting) {
  try {
    const { text, left } = JSON.parse(sessionStorage.getItem(draftKey) ?? "");
    const lost = left.filter((/** @type {{id: string}} */ { id }) => !waiting.has(id));
    return [...lost.map((/** @type {{text: string}} */ one) => one.text), text].filter(Boolean).join("\n");
  } catch {
    return ""; // There is none, or no storage.
  }
}

/** @param {string} text */
function put(text) {
  field.value = text;
  keepDraft();
  measure();
}

/**
 * Sets what is done with a text when Send is pressed, which tells whether it was taken; and what when it is typed.
 * @param {{submit: (text: string) => boolean, typed: () => void}} others
 * @param {string[]} waiting ids of messages that the client sends already
 */
export function start({ submit, typed }, waiting) {
  const press = () => {
    if (submit(field.value)) put("");
    field.focus();
  };
  composer.addEventListener("submit", (event) => {
    event.preventDefault();
    press();
  });
  field.addEventListener("keydown", (event) => {
    // While an input method composes, Enter chooses a word; Safari says so by a number only.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    press();
  });
  field.addEventListener("input", () => {
    keepDraft();
    measure();
    if (field.value !== "") typed();
  });
  field.value ||= draft(new Set(waiting));
  measure();
}
