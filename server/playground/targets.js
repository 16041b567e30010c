// Dials for a target: a reward for each objective, as a quantile, instead of a weight. Only calibrated families have them.

import { make } from "./dom.js";

/** Whether the side's method is the one that targets were measured with. */
export function canTarget(family, method) {
  return Boolean(family.calibration) && family.calibration.steering.method === method;
}

/** The middle of what can be reached, by objective: what the dials begin with. */
export function middle(family) {
  const ends = Object.entries(family.calibration.reachable);
  return Object.fromEntries(ends.map(([name, [low, high]]) => [name, Math.round(50 * (low + high)) / 100]));
}

/** The dials of one side, in a fieldset. `changed(target)` hears of every move; an objective that is left free is not in it. */
export class Targets {
  constructor(box, changed) {
    this.box = box;
    this.changed = changed;
  }

  /** Show `target` within what the family can reach. */
  show(family, target) {
    const standard = middle(family);
    const rows = Object.entries(family.calibration.reachable).map(([name, [low, high]]) => {
      const free = !(name in target);
      const held = make("input", { type: "checkbox", checked: !free, "aria-label": `Hold ${name}` });
      const range = make("input", { type: "range", min: low.toFixed(2), max: high.toFixed(2), step: 0.01, disabled: free });
      range.setAttribute("aria-label", `Target of ${name}`);
      range.value = target[name] ?? standard[name];
      const output = make("output", { "aria-hidden": "true" }, free ? "free" : Number(range.value).toFixed(2));
      const read = () => {
        if (held.checked) target[name] = Number(range.value);
        else delete target[name];
        range.disabled = !held.checked;
        output.value = held.checked ? Number(range.value).toFixed(2) : "free";
        this.changed(target);
      };
      held.addEventListener("change", read);
      range.addEventListener("input", read);
      const label = make("label", { class: "target-name" }, held, make("span", {}, name));
      return make("div", { class: "slider target" }, label, range, output);
    });
    const legend = this.box.querySelector("legend");
    this.box.replaceChildren(legend, ...rows);
  }
}
