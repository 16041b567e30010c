// What one side asks for, as state and as the `steering` object of a request.

import { only } from "./fields.js";
import { asText, parsed } from "./options.js";
import { asSent, normalised } from "./preference.js";
import { OPTIONS } from "./steering_options.js";
import { canTarget } from "./targets.js";

/**
 * A side's state: method; weights over the objectives; lean, whether a method that can do without gets the preference;
 * strength (undefined: the method's default); strengths by kind of value, where both guide; texts of the options.
 */
export function newSide(family, given = {}) {
  const { method, preference, strength, target, ...rest } = given;
  const name = family.methods[method] ? method : family.default_method;
  const both = typeof strength === "object" && strength !== null;
  const texts = {};
  for (const [key, value] of Object.entries(rest)) {
    if (key in OPTIONS && value !== null) texts[key] = asText(key, value);
  }
  return {
    method: name,
    target: target && canTarget(family, name) ? { ...target } : undefined,
    weights: normalised(family.objectives, preference),
    lean: Boolean(preference) && family.methods[name].preference === "optional",
    strength: typeof strength === "number" ? strength : undefined,
    strengths: both ? { ...strength } : {},
    texts,
  };
}

/** Whether the side sends its preference. */
export function prefers(family, side) {
  if (!family.objectives.length) return false;
  const wants = family.methods[side.method].preference;
  return wants === "required" || (wants === "optional" && side.lean);
}

/** Whether there is a strength for each kind of value. */
export function hasTwoStrengths(family, side) {
  return family.methods[side.method].options.includes("value") && side.texts.value === "both";
}

/** The options that the side's method takes, those that every method takes and that have a control here among them. */
export function optionsOf(family, side) {
  const everywhere = Object.keys(OPTIONS).filter((name) => OPTIONS[name].universal);
  return [...family.methods[side.method].options, ...everywhere];
}

/** The `steering` object. Throws an Error where an option's text cannot be read. */
export function steeringOf(family, side, trace) {
  const options = optionsOf(family, side);
  const steering = { method: side.method };
  if (side.target && Object.keys(side.target).length) steering.target = { ...side.target };
  else if (prefers(family, side)) steering.preference = asSent(side.weights);
  if (options.includes("strength")) {
    if (!hasTwoStrengths(family, side)) steering.strength = side.strength;
    else if (Object.keys(side.strengths).length) steering.strength = { ...side.strengths };
  }
  for (const name of options) {
    if (name in OPTIONS) steering[name] = parsed(name, side.texts[name]);
  }
  if (trace) steering.trace = true;
  return only("steering", steering);
}
