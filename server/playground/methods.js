// What the methods are called and do, in a line. One that is not listed is shown by its own name.

const KNOWN = {
  bone_soup: ["Bone Soup", "Merges backbones that were trained on mixes of rewards; solves for the mix that was asked for."],
  rewarded_soup: ["Rewarded Soup", "Merges one policy an objective, weighed by the preference."],
  fitted_soup: ["Fitted soup", "Merges backbones with the coefficients that measured rewards speak for."],
  base: ["Base", "The base model as it is, without any steering."],
  mage: ["MAGE", "Merges a base for the preference, then guides every token by values."],
  amplify: ["Amplify", "Moves further away from the base, in scores, than its merge did."],
  mod: ["MOD", "Decodes with one policy an objective at once."],
  genarm: ["GenARM", "Adds autoregressive reward models to the base, token by token."],
  parm: ["PARM", "Guides by one reward model that is conditioned on the preference."],
  proxy_tuning: ["Proxy tuning", "Adds the difference between tuned and untuned models to the base."],
  dexperts: ["DExperts", "Adds what experts favour and anti-experts do not."],
  contrastive: ["Contrastive", "Subtracts what a weaker model would have said."],
  cfg: ["CFG", "Weighs the prompt up against a negative or an empty one."],
  pad: ["PAD", "Interpolates the base's best tokens with a personalised reward."],
  args: ["ARGS", "Adds explicit values to the base's best tokens."],
  fudge: ["FUDGE", "Adds log-probabilities of classifiers to the base's best tokens."],
  cd: ["Controlled decoding", "Adds a value function, by token or by block."],
  vas: ["VAS", "Adds centred values to the best tokens, leaving the others as they are."],
  fusion_route: ["FusionRoute", "A router picks the expert that writes the next token and adds its own scores."],
  co_llm: ["Co-LLM", "A model writes by itself and defers single tokens to an expert."],
  custom: ["Custom", "Your own weighted sum of models."],
};

/** The method's name for people. */
export function title(name) {
  return KNOWN[name]?.[0] ?? name;
}

/** What it does. */
export function summary(name) {
  return KNOWN[name]?.[1] ?? "";
}
