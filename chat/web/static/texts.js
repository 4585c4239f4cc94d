// @ts-check
/**
 * The words that the scripts of the page show, in the page's language.
 * English stands in the scripts, inside `say("…")`; the page brings the catalogue of its own language as JSON.
 */

/** @type {Record<string, string>} */
const catalogue = JSON.parse(document.getElementById("texts")?.textContent || "{}");

/** Of the words, not of times and dates: those are in the browser's own. */
export const language = document.documentElement.lang || "en";

/** @param {string} english with places like `{n}`  @param {Record<string, string | number>} [values] for them */
export function say(english, values = {}) {
  return (catalogue[english] ?? english).replace(/\{(\w+)\}/g, (place, name) => String(values[name] ?? place));
}

/** Puts elements into the places of a text. @param {string} text  @param {Record<string, (string | Node)[]>} values */
export function fill(text, values) {
  return text.split(/\{(\w+)\}/).flatMap((piece, index) => (index % 2 ? (values[piece] ?? []) : [piece]));
}
