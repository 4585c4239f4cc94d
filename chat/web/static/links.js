// @ts-check
/**
 * Addresses in a text become links that people can follow; all else stays text. For test-chat.js.
 * Built from text and elements, never from markup, and for http and https only.
 */

// Up to white space, quotes, angle brackets, and characters that cannot be seen.
const ADDRESS = /https?:\/\/[^\s"<>\p{C}]+/giu;
// What ends a sentence or a bracket around an address is not part of it.
const AFTER = ".,:;!?'”’…)]}*_~";

/** @param {string} text  @returns {(string | HTMLElement)[]} */
export function linked(text) {
  const parts = [];
  let end = 0;
  for (const { 0: found, index } of text.matchAll(ADDRESS)) {
    const address = trimmed(found);
    if (!isWeb(address)) continue;
    parts.push(text.slice(end, index), link(address));
    end = index + address.length;
  }
  parts.push(text.slice(end));
  return parts.filter((part) => part !== "");
}

/** @param {string} found */
function trimmed(found) {
  // A bracket that the address itself has opened belongs to it.
  let spare = found.split(")").length - found.split("(").length;
  let end = found.length;
  while (AFTER.includes(found[end - 1]) && (found[end - 1] !== ")" || spare-- > 0)) end--;
  return found.slice(0, end);
}

/** @param {string} address */
function isWeb(address) {
  try {
    const { protocol, hostname } = new URL(address);
    return hostname !== "" && (protocol === "http:" || protocol === "https:");
  } catch {
    return false;
  }
}

/** @param {string} address */
function link(address) {
  const element = document.createElement("a");
  element.href = address;
  element.target = "_blank";
  element.rel = "noopener noreferrer nofollow";
  element.textContent = address;
  return element;
}
