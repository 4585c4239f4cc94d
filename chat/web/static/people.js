// @ts-check
/**
 * Who is here: a list with a count, and a way to write to each of the others alone.
 *
 * @import {User} from "./chat-types.js"
 */
import { isDirect, me } from "./bubble.js";
import { button, make, nameOf, part, takeFocus } from "./dom.js";
import { say } from "./texts.js";

const panel = part("people", HTMLDetailsElement);
const summary = part("people-summary", HTMLElement);
const count = part("people-count", HTMLElement);
const list = part("people-list", HTMLElement);

/** @type {Map<number, {name: string, element: HTMLElement}>} */
const shown = new Map();
const others = make("li", "muted");

/** @type {(id: number) => void} */
let write;

/** Sets who opens the room for two. @param {typeof write} opener */
export function start(opener) {
  write = opener;
}

/** @param {{count: number, users: User[]}} picture */
export function show(picture) {
  const { users } = picture;
  const here = new Map(users.map(({ id, name }) => [id, name]));
  // What stays is not moved, so that the focus stays in it.
  for (const [id, { name, element }] of shown) {
    if (here.get(id) === name) continue;
    takeFocus(element, summary);
    element.remove();
    shown.delete(id);
  }
  let next = list.firstElementChild;
  for (const user of users) {
    const element = shown.get(user.id)?.element ?? add(user);
    if (element === next) next = next.nextElementSibling;
    else list.insertBefore(element, next);
  }
  others.textContent = say("and {n} more", { n: picture.count - users.length });
  if (picture.count > users.length) list.append(others);
  else others.remove();
  count.textContent = String(picture.count);
}

/** @param {User} user */
function add({ id, name }) {
  const element = make("li");
  element.append(nameOf(name));
  if (id === me.id) element.append(make("span", "muted", say("you")));
  else if (!isDirect) element.append(button(say("Write"), () => write(id), say("Write to {name} alone", { name })));
  shown.set(id, { name, element });
  return element;
}

// Beside the conversation there is room for it, above it only if asked for.
const wide = matchMedia("(min-width: 60rem)");
const fit = () => { panel.open = wide.matches; };
wide.addEventListener("change", fit);
fit();
