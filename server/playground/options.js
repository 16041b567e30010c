// The options of `steering` besides method, preference and strength, as controls. Which of them a method takes, the
// server says.

import { make } from "./dom.js";

// JSON, so that the server's tests compare it with the schema of `steering`: choices and bounds are those.
export const OPTIONS = {
  "value": {"label": "Value", "choices": ["implicit", "explicit", "both"], "hint": "which kind of value guides"},
  "combine": {"label": "Combine", "choices": ["merged", "ensemble"], "hint": "add up weights, or answers"},
  "candidates": {"label": "Candidates", "whole": true, "minimum": 1, "maximum": 1024, "hint": "best tokens that get a value"},
  "block_length": {"label": "Block length", "whole": true, "minimum": 1, "maximum": 512, "hint": "tokens a block, instead of single tokens"},
  "negative_prompt": {"label": "Negative prompt", "text": true, "hint": "a system message to move away from"},
  "divergence": {"label": "Divergence", "choices": ["reverse_kl", "forward_kl", "jsd", "alpha"], "hint": "what the policies were tuned with"},
  "alpha": {"label": "Alpha", "minimum": 0, "maximum": 100, "open": true, "hint": "of divergence alpha"},
  "complement": {"label": "Router's share", "minimum": 0, "maximum": 100, "hint": "weight of the router's own scores; 0 routes only"},
  "expert_weight": {"label": "Expert's weight", "minimum": 0, "maximum": 100, "open": true, "hint": "weight of the expert's scores"},
  "top_experts": {"label": "Experts at once", "whole": true, "minimum": 1, "hint": "a mixture of so many"},
  "min_stay": {"label": "Shortest stay", "whole": true, "minimum": 1, "maximum": 65536, "hint": "tokens before another may take over"},
  "threshold": {"label": "Threshold", "minimum": 0, "maximum": 1, "hint": "to defer above; 1 never does"},
  "kl_budget": {"label": "KL budget", "minimum": 0, "maximum": 100, "open": true, "hint": "nats a token that guidance may move the base by"},
  "normalize": {"label": "Normalize", "choices": ["none", "sum", "norm"], "hint": "sum: divide by the sum of the weights; norm, of merged weights: as far from the base as their members"},
  "coefficients": {"label": "Coefficients", "json": true, "hint": "by member, in place of those of the preference"},
  "terms": {"label": "Terms", "json": true, "hint": "a list of source and weight"}
};

const JSON_EXAMPLES = {
  coefficients: '{"member": 0.5}',
  terms: '[{"source": "base", "weight": 1}]',
};

/**
 * The value that the text of a control stands for; undefined where it is empty and the server's default holds.
 * Throws an Error for text that is no JSON, where JSON is wanted.
 */
export function parsed(name, text) {
  const option = OPTIONS[name];
  if (text === undefined || (!option.text && text.trim() === "") || text === "") return undefined;
  if (option.json) {
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new Error(`${option.label}: not JSON: ${error.message}`);
    }
  }
  return option.choices || option.text ? text : Number(text);
}

/** The text of a control for a value. */
export function asText(name, value) {
  if (value === undefined || value === null) return "";
  return OPTIONS[name].json ? JSON.stringify(value) : String(value);
}

/** Fill `box` with a control for each of `names`; `texts` holds what is in them, and `changed()` hears of edits. */
export function showOptions(box, names, texts, prefix, changed) {
  const known = Object.keys(OPTIONS).filter((name) => names.includes(name));
  box.replaceChildren(...known.map((name) => row(name, texts, prefix, changed)));
}

function row(name, texts, prefix, changed) {
  const option = OPTIONS[name];
  const id = `${prefix}-${name}`;
  const control = controlOf(name, option);
  control.id = id;
  control.dataset.option = name;
  control.value = texts[name] ?? "";
  control.setAttribute("aria-describedby", `${id}-hint`);
  control.addEventListener("input", () => {
    if (control.value === "") delete texts[name];
    else texts[name] = control.value;
    mark(control, name);
    changed();
  });
  mark(control, name);
  const wide = option.json || option.text ? "option wide-option" : "option";
  return make(
    "div",
    { class: wide },
    make("label", { for: id }, option.label),
    control,
    make("p", { class: "hint", id: `${id}-hint` }, option.hint),
  );
}

function controlOf(name, option) {
  if (option.choices) {
    const choices = option.choices.map((choice) => make("option", { value: choice }, choice));
    return make("select", {}, make("option", { value: "" }, "default"), ...choices);
  }
  if (option.text || option.json) {
    const placeholder = option.json ? JSON_EXAMPLES[name] : false;
    return make("textarea", { rows: 2, placeholder, spellcheck: option.json ? "false" : "true" });
  }
  return make("input", {
    type: "number",
    min: option.minimum,
    max: option.maximum ?? false,
    step: option.whole ? 1 : "any",
    placeholder: "default",
  });
}

function mark(control, name) {
  let wrong = false;
  try {
    parsed(name, control.value);
  } catch {
    wrong = true;
  }
  if (wrong) control.setAttribute("aria-invalid", "true");
  else control.removeAttribute("aria-invalid");
}
