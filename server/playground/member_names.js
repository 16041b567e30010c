// Which members and steering vectors coefficients can name: pressed, a name is put into the text.

import { make } from "./dom.js";

const BEGIN = 0.1; // what a name comes with
const KINDS = { backbone: "Backbones", policy: "Policies", expert: "Experts", vector: "Steering vectors" };

/** The text of coefficients with `name` in it; as it was where it cannot be read, or has the name already. */
export function withName(text, name) {
  let given = {};
  try {
    if (text.trim()) given = JSON.parse(text);
  } catch {
    return text;
  }
  if (typeof given !== "object" || given === null || Array.isArray(given) || name in given) return text;
  return JSON.stringify({ ...given, [name]: BEGIN });
}

/** A list of the names, by kind, for the control that holds the coefficients. */
export function memberNames(members, control) {
  const groups = Object.entries(KINDS).flatMap(([kind, title]) => {
    const names = members.filter((member) => member.kind === kind).map((member) => member.name);
    return names.length ? [group(title, names, control)] : [];
  });
  return make("details", { class: "names" }, make("summary", {}, "Members and vectors"), ...groups);
}

function group(title, names, control) {
  const chips = names.map((name) => {
    const chip = make("button", { type: "button", class: "chip", "aria-label": `Add ${name} to the coefficients` }, name);
    chip.addEventListener("click", () => {
      control.value = withName(control.value, name);
      control.dispatchEvent(new Event("input"));
    });
    return chip;
  });
  return make("div", { class: "presets", role: "group", "aria-label": title }, make("span", { class: "hint" }, title), ...chips);
}
