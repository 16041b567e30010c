// The options of `steering` as controls, but for those that have a control of their own. Which there are, the server says
// in steering_options.js, from its table of them; which of them a method takes, in what it says of a family.

import { make } from "./dom.js";
import { memberNames } from "./member_names.js";
import { OPTIONS } from "./steering_options.js";

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

/**
 * Fill `box` with a control for each of `names`; `texts` holds what is in them, `members` are those of the family, and
 * `changed()` hears of edits.
 */
export function showOptions(box, names, texts, members, prefix, changed) {
  const known = Object.keys(OPTIONS).filter((name) => names.includes(name));
  box.replaceChildren(...known.map((name) => row(name, texts, prefix, changed)));
  const control = box.querySelector("[data-option=coefficients]");
  if (control) control.after(memberNames(members, control));
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
    const placeholder = option.example ?? false;
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
