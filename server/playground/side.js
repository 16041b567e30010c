// The controls of one side: method, presets, preference, strength, options, and the coefficients that result.

import { Coefficients } from "./coefficients.js";
import { fromTemplate, make } from "./dom.js";
import { Front } from "./front.js";
import { summary, title } from "./methods.js";
import { parsed, showOptions } from "./options.js";
import { asSent, equal } from "./preference.js";
import { canTarget, middle, Targets } from "./targets.js";
import { Triangle } from "./triangle.js";
import { Sliders, strengthRow } from "./sliders.js";
import { hasTwoStrengths, newSide, optionsOf, prefers } from "./steering.js";

const STRONGEST = 4; // at the slider's right end; the number beside it goes further

/** One side's panel. `actions`: changed(letter), copy(letter), code(letter). */
export class Side {
  constructor(letter, actions) {
    this.letter = letter;
    this.actions = actions;
    this.root = fromTemplate("side");
    this.root.id = `side-${letter}`;
    this.root.dataset.side = letter;
    const label = letter.toUpperCase();
    const badge = this.find(".badge");
    badge.textContent = label;
    badge.classList.add(letter);
    badge.setAttribute("aria-label", `Side ${label}`);
    this.method = this.find(".method");
    this.sliders = new Sliders(this.find(".preference"), (weights) => {
      this.state.weights = weights;
      this.triangle.show(weights);
      this.edited();
    });
    this.triangle = new Triangle(this.find(".triangle"), (weights) => {
      this.state.weights = weights;
      this.sliders.show(weights);
      this.edited();
    });
    this.front = new Front(this.find(".front"));
    this.targets = new Targets(this.find(".targets"), (target) => {
      this.state.target = target;
      this.edited();
    });
    this.aim = this.find(".aim input");
    this.aim.addEventListener("change", () => {
      this.state.target = this.aim.checked ? middle(this.family) : undefined;
      if (this.aim.checked) delete this.state.target[this.family.objectives.at(-1)];
      this.show(this.state);
      this.edited();
    });
    this.coefficients = new Coefficients(this.find(".bars"));
    const other = letter === "a" ? "B" : "A";
    this.find(".copy-side").textContent = `Copy to ${other}`;
    this.find(".copy-side").addEventListener("click", () => actions.copy(letter));
    this.find(".show-code").setAttribute("aria-label", `Request ${label} as code`);
    this.find(".show-code").addEventListener("click", () => actions.code(letter));
    this.method.addEventListener("change", () => {
      this.state.method = this.method.value;
      this.show(this.state);
      this.edited();
    });
    this.lean = this.find(".lean input");
    this.lean.addEventListener("change", () => {
      this.state.lean = this.lean.checked;
      this.show(this.state);
      this.edited();
    });
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  /** Offer what a family can do. */
  setFamily(family) {
    this.family = family;
    this.triangle.setFamily(family);
    this.front.setFamily(family);
    const entries = Object.entries(family.methods);
    const ready = entries.filter(([, method]) => method.available);
    const missing = entries.filter(([, method]) => !method.available);
    const groups = [make("optgroup", { label: "This family can" }, ...ready.map(([name]) => entry(name)))];
    if (missing.length) {
      const why = missing.map(([name, { reason }]) => entry(name, reason));
      groups.push(make("optgroup", { label: "This family cannot" }, ...why));
    }
    this.method.replaceChildren(...groups);
    const box = this.find(".missing");
    box.hidden = !missing.length;
    box.querySelector("summary").textContent = `${missing.length} of ${entries.length} methods are not available`;
    box
      .querySelector("dl")
      .replaceChildren(
        ...missing.flatMap(([name, { reason }]) => [make("dt", {}, title(name)), make("dd", {}, reason ?? "")]),
      );
    const presets = Object.entries(family.presets).map(([name, preset]) => this.preset(name, preset));
    if (family.objectives.length > 1) presets.unshift(this.equal());
    this.find(".presets").replaceChildren(...presets);
    this.find(".presets").hidden = !presets.length;
  }

  preset(name, steering) {
    const button = make("button", { type: "button", class: "chip" }, name);
    button.dataset.preset = name;
    button.addEventListener("click", () => {
      this.show(newSide(this.family, steering));
      this.edited();
    });
    return button;
  }

  equal() {
    const button = make("button", { type: "button", class: "chip" }, "equal");
    button.addEventListener("click", () => {
      this.state.weights = equal(this.family.objectives);
      this.state.lean = true;
      this.show(this.state);
      this.edited();
    });
    return button;
  }

  /** Show a state, which is from now on this side's own. */
  show(state) {
    this.state = state;
    const method = this.family.methods[state.method];
    this.method.value = state.method;
    this.find(".about-method").textContent = summary(state.method);
    this.find(".lean").hidden = method.preference !== "optional" || !this.family.objectives.length;
    this.lean.checked = state.lean;
    const aims = canTarget(this.family, state.method);
    if (!aims) state.target = undefined;
    this.find(".aim").hidden = !aims;
    this.aim.checked = Boolean(state.target);
    this.find(".targets").hidden = !state.target;
    if (state.target) this.targets.show(this.family, state.target);
    const weighs = prefers(this.family, state) && !state.target;
    this.find(".preference").hidden = !weighs;
    this.find(".triangle").hidden = !weighs || this.family.objectives.length !== 3;
    this.sliders.show(state.weights);
    this.triangle.show(state.weights);
    this.showStrengths();
    showOptions(this.find(".options"), optionsOf(this.family, state), state.texts, this.family.members, `option-${this.letter}`, () => this.optionEdited());
    this.find(".more").hidden = !this.find(".options").childElementCount;
    if (method.needs.length) this.find(".more").open = true;
    this.describe();
  }

  showStrengths() {
    const { state } = this;
    const { options, strength } = this.family.methods[state.method];
    const box = this.find(".strengths");
    if (!options.includes("strength")) {
      box.replaceChildren();
    } else if (hasTwoStrengths(this.family, state)) {
      const one = (kind, word) =>
        strengthRow(`Strength, ${kind}`, word, state.strengths[kind], strength, STRONGEST, (value) => {
          if (value === undefined) delete state.strengths[kind];
          else state.strengths[kind] = value;
          this.edited();
        });
      box.replaceChildren(one("implicit", "Implicit"), one("explicit", "Explicit"));
    } else {
      const changed = (value) => {
        state.strength = value;
        this.edited();
      };
      box.replaceChildren(strengthRow("Strength", "Strength", state.strength, strength, STRONGEST, changed));
    }
  }

  optionEdited() {
    const two = this.find(".strengths").childElementCount === 2;
    if (two !== hasTwoStrengths(this.family, this.state)) this.showStrengths();
    this.edited();
  }

  edited() {
    this.describe();
    this.actions.changed(this.letter);
  }

  describe() {
    const { family, state } = this;
    const parts = [title(state.method)];
    if (state.target) {
      parts.push(...Object.entries(state.target).map(([name, wanted]) => `${name} \u2192 ${wanted.toFixed(2)}`));
    } else if (prefers(family, state)) {
      const sent = Object.entries(asSent(state.weights)).filter(([, weight]) => weight > 0);
      parts.push(...sent.map(([name, weight]) => `${name} ${weight.toFixed(2)}`));
    }
    this.front.show(state.weights, canTarget(family, state.method) && !state.target);
    this.brief = parts.join(" \u00b7 ");
    this.find(".brief").textContent = this.brief;
    const set = optionsOf(family, state).filter((name) => name in state.texts && isSet(name, state.texts));
    this.find(".count").textContent = set.length ? `(${set.length} set)` : "";
  }
}

function entry(name, reason) {
  const text = reason ? `${title(name)}: ${reason}` : title(name);
  return make("option", { value: name, disabled: reason !== undefined, title: reason ?? false }, text);
}

function isSet(name, texts) {
  try {
    return parsed(name, texts[name]) !== undefined;
  } catch {
    return true;
  }
}
