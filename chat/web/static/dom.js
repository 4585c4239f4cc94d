// @ts-check
/** How the scripts of the chat page find and make its elements. */

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
