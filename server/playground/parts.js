// The parts of an answer that was steered otherwise on the way, in words.

import { title } from "./methods.js";

/** A preference's weights, what has none left out. */
export function weightsText(preference) {
  return Object.entries(preference)
    .filter(([, weight]) => weight >= 0.005)
    .map(([name, weight]) => `${name} ${weight.toFixed(2)}`)
    .join(" \u00b7 ");
}

/** What steers from a part on, as far as it is new after `before`; both are {method, preference}. */
export function partName(part, before) {
  const words = [];
  if (part.method !== before?.method) words.push(title(part.method));
  const weights = part.preference ? weightsText(part.preference) : "";
  if (weights && (words.length || weights !== (before?.preference ? weightsText(before.preference) : ""))) words.push(weights);
  return words.join(" \u00b7 ") || "other options";
}
