// What preferences are expected to come to, two objectives at a time: the Pareto front, and where the sliders stand.

import { fixed, make } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const SIZE = 180;
const PAD = 22;

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/**
 * The quantiles by objective at `weights`, between the points of a calibration's `map`: linear within the simplex of
 * lattice points around (Freudenthal's, in sums from behind), so exact at the points themselves.
 */
export function expectedAt(map, names, weights) {
  const some = map.flatMap(({ preference }) => names.map((name) => preference[name])).filter((weight) => weight > 1e-6);
  const steps = Math.round(1 / Math.min(...some));
  const keyOf = (counts) => counts.join();
  const known = new Map(
    map.map(({ preference, quantiles }) => [keyOf(names.map((name) => Math.round(preference[name] * steps))), quantiles]),
  );
  const tails = names.slice(1).map((_, index) => steps * names.slice(index + 1).reduce((sum, name) => sum + weights[name], 0));
  const corner = tails.map((tail) => Math.floor(tail + 1e-9));
  const rest = tails.map((tail, index) => Math.max(0, tail - corner[index]));
  const order = rest.map((_, index) => index).sort((one, two) => rest[two] - rest[one] || one - two);
  const found = Object.fromEntries(names.map((name) => [name, 0]));
  for (let taken = 0; taken <= order.length; taken += 1) {
    if (taken > 0) corner[order[taken - 1]] += 1;
    const share = (taken > 0 ? rest[order[taken - 1]] : 1) - (taken < order.length ? rest[order[taken]] : 0);
    const quantiles = known.get(keyOf([steps, ...corner].map((tail, index) => tail - (corner[index] ?? 0))));
    if (share > 1e-9) for (const name of names) found[name] += share * (quantiles?.[name] ?? NaN);
  }
  return found;
}

/** Those of `points`, each [x, y], that no other one beats in both, from left to right. */
export function frontOf(points) {
  const sorted = [...points].sort((one, two) => two[0] - one[0] || two[1] - one[1]);
  let best = -Infinity;
  const front = sorted.filter(([, y]) => {
    const better = y > best;
    best = Math.max(best, y);
    return better;
  });
  return front.reverse();
}

/** The chart of one side, in a details element. */
export class Front {
  constructor(box) {
    this.box = box;
    this.body = box.querySelector("div");
  }

  /** Offer it for a calibrated family with objectives to trade for each other. */
  setFamily(family) {
    this.names = family.objectives;
    this.map = family.calibration?.map ?? [];
    this.known = this.map.length > 0 && this.names.length > 1;
    if (!this.known) return;
    this.axes = [this.names[0], this.names.at(-1)];
    this.dot = draw("circle", { r: 6, class: "dot" });
    this.cloud = draw("g", {});
    this.words = make("p", { class: "hint" });
    this.svg = draw("svg", { viewBox: `0 0 ${SIZE + 2 * PAD} ${SIZE + 2 * PAD}`, role: "img" }, this.cloud, this.dot);
    const choices = this.names.length > 2 ? [make("p", { class: "axes" }, this.choice(0, "Across"), this.choice(1, "Up"))] : [];
    this.body.replaceChildren(...choices, this.svg, this.words);
    this.paint();
  }

  choice(axis, label) {
    const select = make("select", {}, ...this.names.map((name) => new Option(name, name)));
    select.value = this.axes[axis];
    select.addEventListener("change", () => {
      this.axes[axis] = select.value;
      this.paint();
      this.show(this.weights, !this.box.hidden);
    });
    return make("label", { class: "heat-of" }, `${label} `, select);
  }

  at(quantiles) {
    const [x, y] = this.axes.map((name) => quantiles[name]);
    return [PAD + SIZE * x, PAD + SIZE * (1 - y)];
  }

  paint() {
    const points = this.map.map(({ quantiles }) => this.axes.map((name) => quantiles[name]));
    const line = frontOf(points).map((point) => this.at(Object.fromEntries(this.axes.map((name, index) => [name, point[index]]))));
    const end = PAD + SIZE;
    this.cloud.replaceChildren(
      draw("path", { d: `M${PAD},${PAD}V${end}H${end}`, class: "outline" }),
      ...this.map.map(({ quantiles }) => {
        const [cx, cy] = this.at(quantiles);
        return draw("circle", { cx, cy, r: 2.5, class: "seen" });
      }),
      draw("polyline", { points: line.map((point) => point.join(",")).join(" "), class: "edge" }),
      draw("text", { x: end, y: end + 16, "text-anchor": "end" }, this.axes[0]),
      draw("text", { x: PAD, y: PAD - 8 }, this.axes[1]),
    );
  }

  /** Where `weights` stand; `offered`: whether the side's method is the one that was measured. */
  show(weights, offered) {
    this.weights = weights;
    this.box.hidden = !this.known || !offered;
    if (this.box.hidden) return;
    const expected = expectedAt(this.map, this.names, weights);
    const [cx, cy] = this.at(expected);
    this.dot.setAttribute("cx", cx);
    this.dot.setAttribute("cy", cy);
    const said = this.names.map((name) => `${name} ${fixed(expected[name])}`).join(" \u00b7 ");
    this.words.textContent = `You are here: ${said}. Shares of measured answers with a smaller reward; the line is the front.`;
    this.svg.setAttribute("aria-label", `Expected rewards of ${this.axes.join(" and ")}, and where the sliders stand: ${said}`);
  }
}
