// @ts-check
/**
 * The list of rooms, kept fresh: what is unread, who is there, what was said last. Rows stay the same elements, so
 * that nothing flickers and the focus stays where it is.
 *
 * @typedef {object} Room  As /api/rooms lists it.
 * @property {string} name
 * @property {number} last_seq
 * @property {number} last_read_seq
 * @property {string} last_message_at
 * @property {number} online
 * @property {{name: string}} [with] the other one in a room for two
 */
import { part, takeFocus, write } from "./dom.js";
import { say } from "./texts.js";

const FRESH_MS = 10_000;
const SOON_MS = 2_000; // Until the server tells what was read in the room that one just came from.
const PATIENCE_MS = 9_000; // For one answer: less than until it asks again.

const { root = "" } = part("rooms-page", HTMLElement).dataset;
const list = part("rooms", HTMLUListElement);
const blank = part("blank", HTMLTemplateElement);
const news = part("news", HTMLElement);
const title = document.title;

const timeOnly = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const dayAndYear = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const dayAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });

let asking = false;

async function refresh() {
  if (document.visibilityState === "hidden" || asking) return; // Shown again, it asks at once.
  asking = true;
  try {
    const answer = await fetch(`${root}/api/rooms`, { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (answer.ok) {
      show(await answer.json());
      tell();
    } else if (answer.status === 401) write(news, say("You are signed out. Reload the page to sign in again."));
    else throw new Error(answer.statusText);
  } catch {
    write(news, say("The list may be out of date: the server does not answer."));
  } finally {
    asking = false;
  }
}

/** @param {{rooms: Room[], more: boolean}} answer */
function show({ rooms, more }) {
  const focused = document.activeElement;
  const rows = new Map(rowsNow().map((row) => [row.dataset.room ?? "", row]));
  for (const { name } of rooms) if (!rows.has(name)) rows.set(name, add(name));
  const names = new Set(rooms.map(({ name }) => name));
  for (const [name, row] of rows) {
    if (names.has(name)) continue;
    takeFocus(row, part("room", HTMLInputElement));
    row.remove();
  }
  // Most stay where they are: the others move around them.
  let next = list.firstElementChild;
  for (const room of rooms) {
    const row = /** @type {HTMLElement} */ (rows.get(room.name));
    fill(row, room);
    if (row === next) next = next.nextElementSibling;
    else list.insertBefore(row, next);
  }
  // What moves loses the focus.
  if (focused instanceof HTMLElement && list.contains(focused)) focused.focus({ preventScroll: true });
  list.hidden = rooms.length === 0;
  part("none", HTMLElement).hidden = rooms.length > 0;
  part("more", HTMLElement).hidden = !more;
}

/** @returns {HTMLElement[]} */
const rowsNow = () => [...list.querySelectorAll("li")];

/** @param {string} name of a room that was not listed before */
function add(name) {
  const row = /** @type {HTMLElement} */ (/** @type {Element} */ (blank.content.firstElementChild).cloneNode(true));
  row.dataset.room = name;
  inside(row, ".facts").id = `facts-${name}`;
  const link = inside(row, "a");
  link.setAttribute("href", `${root}/test-chat/${name}/`);
  link.setAttribute("aria-describedby", `facts-${name}`);
  return row;
}

/** @param {HTMLElement} row  @param {Room} room */
function fill(row, room) {
  // Where one has read nothing yet nobody waits for an answer, unless it is a room for two.
  row.classList.toggle("mine", room.with !== undefined || room.last_read_seq > 0);
  write(inside(row, "bdi"), room.with?.name ?? room.name);
  inside(row, ".direct").hidden = room.with === undefined;
  count(inside(row, ".new"), Math.max(0, room.last_seq - room.last_read_seq));
  count(inside(row, ".here"), room.online);
  inside(row, "time").setAttribute("datetime", room.last_message_at);
}

/** @param {HTMLElement} element  @param {number} n */
function count(element, n) {
  write(inside(element, ".number"), String(n));
  element.hidden = n === 0;
}

/** Puts the times into words, and what is unread into the title and into words of its own. */
function tell() {
  let unread = 0;
  for (const row of rowsNow()) {
    if (row.classList.contains("mine")) unread += Number(inside(row, ".new .number").textContent);
    const time = inside(row, "time");
    const when = new Date(time.getAttribute("datetime") ?? "");
    write(time, timeOf(when));
    time.title = dayAndTime.format(when);
  }
  document.title = unread ? `(${unread}) ${title}` : title;
  write(news, unread ? say("{n} unread", { n: unread }) : "");
}

/** @param {Date} when */
function timeOf(when) {
  const today = new Date();
  if (when.toDateString() === today.toDateString()) return timeOnly.format(when);
  return (when.getFullYear() === today.getFullYear() ? day : dayAndYear).format(when);
}

/** @param {Element} element  @param {string} selector  @returns {HTMLElement} */
function inside(element, selector) {
  return /** @type {HTMLElement} */ (element.querySelector(selector));
}

tell();
setTimeout(refresh, SOON_MS);
setInterval(refresh, FRESH_MS);
document.addEventListener("visibilitychange", refresh);
window.addEventListener("pageshow", ({ persisted }) => { if (persisted) refresh(); });
