// The bodies of requests, from the page's state.

import { only } from "./fields.js";
import { ranking } from "./ranked.js";
import { steeringOf } from "./steering.js";

/** What `thinking` is by the form's choice: nothing, apart, or apart and ended after so many tokens. */
export const THOUGHTS = { "": undefined, apart: {}, ...Object.fromEntries([0, 128, 512, 2048].map((budget) => [budget, { budget }])) };

/** After how many tokens a thought is verified, by the form's choice. */
export const CHECKS = ["", "64", "128", "256"];

/** The form's `thinking`, with a verifier where it comes before the budget's end. */
function thinkingOf({ thinking, verify }) {
  const asked = THOUGHTS[thinking];
  const every = Number(verify);
  if (!asked || !every || every >= (asked.budget ?? Infinity)) return asked;
  return { ...asked, verifier: { every } };
}

/**
 * The body of POST /v1/generate for one side; what is best is known when all answers have ended, so that ranked ones are
 * no stream. Throws an Error where an option cannot be read.
 */
export function generateBody(state, letter, stream) {
  const steering = steeringOf(state.family, state.sides[letter], state.trace);
  const ranked = ranking(state.form);
  if (!ranked) return bodyOf(state, letter, stream, steering);
  return { ...bodyOf(state, letter, false, only("steering", { ...steering, rank: ranked.rank })), ...only("generate", { n: ranked.n }) };
}

/** The same for A's prompt, seed and sampling with a `steering` of its own. */
export function cellBody(state, steering) {
  return bodyOf(state, "a", true, only("steering", steering));
}

function bodyOf(state, letter, stream, steering) {
  const form = state.form;
  const own = letter === "b" && !form.locked;
  const prompt = own ? form.promptB : form.prompt;
  const chat = form.format === "chat";
  const messages = [{ role: "user", content: prompt }];
  if (form.system.trim()) messages.unshift({ role: "system", content: form.system });
  return only("generate", {
    model: state.family.name,
    messages: chat ? messages : undefined,
    prompt: chat ? undefined : prompt,
    max_tokens: form.maxTokens,
    temperature: form.temperature,
    top_p: form.topP,
    seed: own ? form.seedB : form.seed,
    logprobs: form.alternatives ? true : undefined,
    top_logprobs: form.alternatives || undefined,
    stream: stream || undefined,
    thinking: thinkingOf(form),
    steering,
  });
}

/** The body of POST /v1/coefficients for one side. Throws an Error where an option cannot be read. */
export function coefficientsBody(state, letter) {
  return only("coefficients", {
    model: state.family.name,
    steering: steeringOf(state.family, state.sides[letter], false),
  });
}
