// The page's state in the URL's fragment, which browsers do not send to servers. It never holds the API key.

import { RANKS } from "./ranked.js";
import { CHECKS, THOUGHTS } from "./request.js";
import { newSide, steeringOf } from "./steering.js";
import { OPTIONS } from "./steering_options.js";

const TEXTS = { prompt: "prompt", prompt_b: "promptB", system: "system", ask: "ask" };
const NUMBERS = {
  temperature: "temperature", top_p: "topP", max_tokens: "maxTokens", alternatives: "alternatives", seed: "seed",
  seed_b: "seedB", answers: "answers",
};
const CHOICES = {
  format: ["chat", "text"], colours: ["auto", "shift", "expert", "none"], thinking: Object.keys(THOUGHTS),
  verify: CHECKS, rank: Object.keys(RANKS),
};

/** The fragment for a state, without "#". */
export function fragmentOf(state) {
  const { form } = state;
  const parts = new URLSearchParams();
  parts.set("family", state.family.name);
  for (const letter of ["a", "b"]) {
    try {
      parts.set(letter, JSON.stringify(steeringOf(state.family, state.sides[letter], false)));
    } catch {
      // An option that is being typed; the link has it once it can be read.
    }
  }
  for (const [key, name] of Object.entries(TEXTS)) {
    if (form[name] && (key !== "prompt_b" || !form.locked)) parts.set(key, form[name]);
  }
  for (const [key, name] of Object.entries(NUMBERS)) {
    if (form[name] !== undefined && (key !== "seed_b" || !form.locked)) parts.set(key, String(form[name]));
  }
  for (const key of Object.keys(CHOICES)) if (form[key]) parts.set(key, form[key]);
  if (form.live) parts.set("live", "yes");
  if (!form.locked) parts.set("locked", "no");
  return parts.toString();
}

/** The family that a fragment asks for, or null. */
export function familyIn(fragment) {
  return new URLSearchParams(fragment).get("family");
}

/**
 * Put what `fragment` says into `form` and give the sides it describes.
 *
 * Returns `{sides, problems}`: sides by letter, as far as they are there; problems: what could not be read, in words.
 */
export function readFragment(fragment, family, form) {
  const parts = new URLSearchParams(fragment);
  const problems = [];
  for (const [key, name] of Object.entries(TEXTS)) {
    if (parts.has(key)) form[name] = parts.get(key);
  }
  for (const [key, name] of Object.entries(NUMBERS)) {
    if (!parts.has(key)) continue;
    const number = Number(parts.get(key));
    if (parts.get(key) !== "" && Number.isFinite(number)) form[name] = number;
    else problems.push(`${key} is no number`);
  }
  for (const [key, choices] of Object.entries(CHOICES)) {
    if (choices.includes(parts.get(key))) form[key] = parts.get(key);
  }
  form.locked = parts.get("locked") !== "no";
  for (const key of ["thinking", "verify", "rank"]) if (!parts.has(key)) form[key] = "";
  form.live = parts.get("live") === "yes";
  const sides = {};
  for (const letter of ["a", "b"]) {
    if (parts.has(letter)) sides[letter] = sideIn(parts.get(letter), family, letter.toUpperCase(), problems);
  }
  return { sides, problems };
}

function sideIn(text, family, label, problems) {
  let steering;
  try {
    steering = JSON.parse(text);
  } catch {
    steering = null;
  }
  if (typeof steering !== "object" || steering === null || Array.isArray(steering)) {
    problems.push(`the setting of ${label} cannot be read`);
    return newSide(family);
  }
  const { method, preference, target: __, strength: _, ...rest } = steering;
  if (method !== undefined && !family.methods[method]?.available) {
    problems.push(`method ${method} of ${label} is not available in family ${family.name}`);
    delete steering.method;
  }
  for (const name of Object.keys(preference ?? {})) {
    if (!family.objectives.includes(name)) problems.push(`${label}: the family has no objective ${name}`);
  }
  for (const name of Object.keys(rest)) {
    if (!(name in OPTIONS) && name !== "trace") problems.push(`${label}: unknown option ${name}`);
  }
  return newSide(family, steering);
}
