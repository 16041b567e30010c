// Every field of the API that this page may send, by endpoint; request.js sends no other. The lists are JSON, so that
// the server's tests read them and compare them with its schemas.

export const FIELDS = {
  "generate": [
    "model", "messages", "prompt", "max_tokens", "temperature", "top_p", "seed", "logprobs", "top_logprobs", "stream",
    "steering"
  ],
  "coefficients": ["model", "steering"],
  "steering": [
    "method", "preference", "target", "strength", "value", "combine", "candidates", "block_length", "negative_prompt",
    "divergence", "alpha", "complement", "expert_weight", "top_experts", "min_stay", "threshold", "kl_budget",
    "coefficients", "terms", "normalize", "trace"
  ]
};

/** `body` without what is undefined. Throws on a field that is not in the list. */
export function only(list, body) {
  const kept = {};
  for (const [name, value] of Object.entries(body)) {
    if (!FIELDS[list].includes(name)) throw new Error(`${name} is no field of ${list}`);
    if (value !== undefined) kept[name] = value;
  }
  return kept;
}
