// One slider an objective; they always sum to 1.

import { make } from "./dom.js";
import { moved, percents } from "./preference.js";

/** The sliders of one side, in a fieldset. `changed(weights)` hears of every move. */
export class Sliders {
  constructor(box, changed) {
    this.box = box;
    this.changed = changed;
    this.rows = new Map();
    this.weights = {};
    this.shape = {};
  }

  /** Show weights that were not made by moving a slider here. */
  show(weights) {
    const names = Object.keys(weights);
    if (names.join("\n") !== [...this.rows.keys()].join("\n")) this.build(names);
    this.weights = weights;
    this.shape = { ...weights };
    this.write(percents(weights));
  }

  build(names) {
    for (const { row } of this.rows.values()) row.remove();
    this.rows = new Map(names.map((name) => [name, this.row(name, names.length === 1)]));
    this.box.append(...[...this.rows.values()].map(({ row }) => row));
  }

  row(name, alone) {
    const range = make("input", { type: "range", min: 0, max: 100, step: 1, disabled: alone });
    range.dataset.objective = name;
    const output = make("output", { "aria-hidden": "true" });
    range.addEventListener("input", () => this.move(name, Number(range.value) / 100));
    const row = make("label", { class: "slider" }, make("span", { class: "slider-name", title: name }, name), range, output);
    return { row, range, output };
  }

  move(name, value) {
    // What the others share is remembered from when they last had something to share.
    const others = Object.keys(this.weights).filter((other) => other !== name);
    if (others.some((other) => this.weights[other] > 0)) this.shape = { ...this.weights };
    this.weights = moved(this.weights, name, value, this.shape);
    this.write(percents(this.weights, name));
    this.changed(this.weights);
  }

  write(shown) {
    for (const [name, { range, output }] of this.rows) {
      range.value = shown[name];
      range.style.setProperty("--filled", `${shown[name]}%`);
      range.setAttribute("aria-valuetext", `${shown[name]} percent`);
      output.value = (shown[name] / 100).toFixed(2);
    }
  }
}

/** A slider with a number beside it, for a strength; `name` is what stands beside it, `label` is said in full. `changed(value)` hears of edits; undefined is the default. */
export function strengthRow(label, name, value, standard, most, changed) {
  const range = make("input", { type: "range", min: 0, max: most, step: 0.05, "aria-label": label });
  const number = make("input", { type: "number", min: -100, max: 100, step: 0.05, "aria-label": `${label}, exactly` });
  const reset = make("button", { type: "button", class: "quiet reset", title: "Back to the method's default" }, "Default");
  const write = (given) => {
    const shown = given ?? standard;
    range.value = shown;
    range.style.setProperty("--filled", `${(100 * Math.min(Math.max(shown, 0), most)) / most}%`);
    number.value = shown;
    reset.classList.toggle("idle", given === undefined);
    reset.disabled = given === undefined;
  };
  const edited = (control, text) => {
    const given = text === "" || !Number.isFinite(Number(text)) ? undefined : Number(text);
    if (control === range || given === undefined) write(given);
    else {
      const typed = number.value;
      write(given);
      number.value = typed; // what is being typed stays as it is
    }
    changed(given);
  };
  range.addEventListener("input", () => edited(range, range.value));
  number.addEventListener("change", () => edited(number, number.value));
  number.addEventListener("input", () => number.value !== "" && edited(number, number.value));
  reset.addEventListener("click", () => {
    write(undefined);
    changed(undefined);
    range.focus();
  });
  write(value);
  return make("div", { class: "slider strength" }, make("span", { class: "slider-name" }, name), range, number, reset);
}
