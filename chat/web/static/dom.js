// @ts-check
/** How the scripts of the chat page find, make and remove its elements. */

/** @template {HTMLElement} E  @param {string} id  @param {new () => E} kind  @returns {E} */
export function part(id, kind) {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new Error(`The page has no #${id}.`);
  return element;
}

/** @param {string} tag  @param {string} [className]  @param {string} [text] */
export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Writes what is not there already. @param {HTMLElement} element  @param {string} words */
export function write(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

/** A name beside other words, which its writing direction must not disturb. @param {string} name */
export function nameOf(name) {
  return make("bdi", "", name);
}

/** @param {string} words  @param {() => void} act  @param {string} [label] for who does not see what is around it */
export function button(words, act, label) {
  const element = make("button", "quiet small", words);
  element.setAttribute("type", "button");
  if (label) element.setAttribute("aria-label", label);
  element.addEventListener("click", act);
  return element;
}

/** Before something that may hold the focus goes away. @param {Element} from  @param {HTMLElement} to who gets it */
export function takeFocus(from, to) {
  if (from.contains(document.activeElement)) to.focus({ preventScroll: true });
}
