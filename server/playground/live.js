// Steering an answer while it is written: what changed of its side's settings is sent once the controls rest.

import { call } from "./api.js";
import { debounced } from "./dom.js";
import { only } from "./fields.js";

const REST = 250; // milliseconds; each change computes the text so far anew
const AIMS = ["preference", "target", "coefficients", "terms"]; // a new one takes the place of the old one
const FINAL = ["too_many_changes", "not_steerable", "not_here"]; // codes after which no other change is taken either
const ENDED = "The answer had ended before the change came.";

/**
 * What POST /v1/generate/{id}/steering is told to get from `before` to `after`, both `steering` objects, and `kept`: keys
 * that `after` leaves to their defaults and that a running answer keeps. `strength` is the default strength.
 */
export function changeOf(before, after, strength) {
  const { trace: _, ...wanted } = after;
  if (before.strength !== undefined && wanted.strength === undefined && strength !== null) wanted.strength = strength;
  const another = before.method !== wanted.method;
  const same = (name) => JSON.stringify(before[name]) === JSON.stringify(wanted[name]);
  const change = Object.fromEntries(
    Object.entries(wanted).filter(([name, value]) => value !== undefined && (another || !same(name))),
  );
  if (AIMS.some((name) => before[name] !== undefined && wanted[name] === undefined)) {
    // What it was steered towards is taken back: that only another aim can do.
    for (const name of AIMS) if (wanted[name] !== undefined) change[name] = wanted[name];
  }
  const aimed = AIMS.some((name) => name in change);
  const kept = Object.keys(before).filter((name) => {
    if (name === "trace" || before[name] === undefined || wanted[name] !== undefined) return false;
    if (AIMS.includes(name) && aimed) return false;
    return !another || name === "preference" || name === "target"; // another method takes over nothing else
  });
  return { change, kept };
}

/** One running answer. `told`: accepted(steering, tokens), refused(message). */
export class LiveSteering {
  constructor(steering, told) {
    this.now = steering;
    this.told = told;
    this.id = "";
    this.closed = false; // ended, or changed as often as it may be
    this.sending = false;
    this.wanted = null;
    this.soon = debounced(() => this.send(), REST);
  }

  /** The stream has begun; `id` is how the server calls it, null where it does not say. */
  began(id) {
    this.id = id;
    this.send();
  }

  /** The answer has ended. */
  ended() {
    if (this.wanted && !this.closed) this.told.refused(ENDED);
    this.closed = true;
  }

  /** Another answer has taken its place: nothing more is sent, or told. */
  drop() {
    this.closed = true;
    this.told = { accepted() {}, refused() {} };
  }

  /** Steer the rest by `steering`, once nothing else has been asked for for a moment. */
  want(steering, strength) {
    if (this.closed) return;
    this.wanted = { steering, strength };
    this.soon();
  }

  async send() {
    if (this.id === null && this.wanted) this.refuse("This server does not say which answer this is.");
    if (!this.id || !this.wanted || this.sending || this.closed) return;
    const { steering, strength } = this.wanted;
    this.wanted = null;
    const { change, kept } = changeOf(this.now, steering, strength);
    if (kept.length) return this.told.refused(`${kept.join(", ")}: a running answer keeps what it was given.`);
    if (!Object.keys(change).length) return;
    this.sending = true;
    try {
      const body = only("live", { steering: only("steering", change) });
      const { tokens } = await call(`v1/generate/${encodeURIComponent(this.id)}/steering`, body);
      this.now = steering;
      this.told.accepted(steering, tokens[0]);
    } catch (error) {
      if (error.code === "answer_not_found") this.refuse(ENDED);
      else if (FINAL.includes(error.code)) this.refuse(error.message);
      else this.told.refused(error.message);
    }
    this.sending = false;
    this.send();
  }

  refuse(message) {
    this.closed = true;
    this.told.refused(message);
  }
}
