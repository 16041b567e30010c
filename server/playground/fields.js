// Every field of the API that this page may send, by endpoint; request.js sends no other. The lists are JSON, so that
// the server's tests read them and compare them with its schemas. Of `steering` they have what has a control of its own;
// all OPTIONS come to it.

import { OPTIONS } from "./steering_options.js";

export const FIELDS = {
  "generate": [
    "model", "messages", "prompt", "max_tokens", "temperature", "top_p", "seed", "logprobs", "top_logprobs", "stream",
    "thinking", "n", "steering"
  ],
  "coefficients": ["model", "steering"],
  "live": ["steering"],
  "steering": ["method", "preference", "target", "strength", "rank", "trace"]
};

/** `body` without what is undefined. Throws on a field that is not in the list. */
export function only(list, body) {
  const kept = {};
  for (const [name, value] of Object.entries(body)) {
    const known = FIELDS[list].includes(name) || (list === "steering" && name in OPTIONS);
    if (!known) throw new Error(`${name} is no field of ${list}`);
    if (value !== undefined) kept[name] = value;
  }
  return kept;
}
