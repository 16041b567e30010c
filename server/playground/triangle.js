// A triangle of preferences over three objectives: a corner for each, and where the measured rewards are high.

const SVG = "http://www.w3.org/2000/svg";
const SIZE = 200;
const HEIGHT = (SIZE * Math.sqrt(3)) / 2;
const PAD = 28;

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Where weights lie: the first objective's corner is on the left, the second's on the right, the third's on top. */
export function placeOf(weights) {
  const [, second, third] = weights;
  return [PAD + SIZE * (second + third / 2), PAD + HEIGHT * (1 - third)];
}

/** The weights at a place, of the nearest point of the triangle's plane with none below 0. */
export function weightsAt(x, y) {
  const third = 1 - (y - PAD) / HEIGHT;
  const second = (x - PAD) / SIZE - third / 2;
  const raw = [1 - second - third, second, third].map((weight) => Math.max(0, weight));
  const total = raw.reduce((sum, weight) => sum + weight, 0) || 1;
  return raw.map((weight) => weight / total);
}

/** The picker of one side. `changed(weights by objective)` hears of every move. */
export class Triangle {
  constructor(box, changed) {
    this.box = box;
    this.changed = changed;
  }

  /** Build it for a family with three objectives; hidden for any other. */
  setFamily(family) {
    this.names = family.objectives;
    this.box.hidden = family.objectives.length !== 3;
    if (this.box.hidden) return;
    this.map = family.calibration?.map ?? [];
    this.heat = draw("g", { class: "heat" });
    this.dot = draw("circle", { r: 7, class: "dot" });
    const corners = [[1, 0, 0], [0, 1, 0], [0, 0, 1]].map(placeOf);
    const outline = draw("polygon", { points: corners.map((corner) => corner.join(",")).join(" "), class: "outline" });
    const labels = corners.map(([x, y], index) =>
      draw("text", { x, y: index === 2 ? y - 14 : y + 22, "text-anchor": ["start", "end", "middle"][index] }, this.names[index]),
    );
    this.svg = draw(
      "svg",
      { viewBox: `0 0 ${SIZE + 2 * PAD} ${HEIGHT + 2 * PAD}`, "aria-hidden": "true" },
      this.heat, outline, ...labels, this.dot,
    );
    this.svg.addEventListener("pointerdown", (event) => {
      this.svg.setPointerCapture(event.pointerId);
      this.move(event);
    });
    this.svg.addEventListener("pointermove", (event) => event.buttons && this.move(event));
    this.box.replaceChildren(this.svg);
    if (this.map.length) this.box.append(this.choice());
    this.paint(this.names[0]);
  }

  /** Which objective's reward is the heat. */
  choice() {
    const select = document.createElement("select");
    select.append(...this.names.map((name) => new Option(name, name)));
    select.addEventListener("change", () => this.paint(select.value));
    const label = document.createElement("label");
    label.className = "heat-of";
    label.append("Measured reward of ", select);
    return label;
  }

  paint(name) {
    this.heat.replaceChildren(
      ...this.map.map(({ preference, quantiles }) => {
        const [x, y] = placeOf(this.names.map((objective) => preference[objective]));
        const opacity = (0.08 + 0.8 * quantiles[name]).toFixed(2);
        return draw("circle", { cx: x, cy: y, r: SIZE / 17, "fill-opacity": opacity });
      }),
    );
  }

  /** Show weights that were set elsewhere. */
  show(weights) {
    if (this.box.hidden || !this.dot) return;
    const [x, y] = placeOf(this.names.map((name) => weights[name]));
    this.dot.setAttribute("cx", x);
    this.dot.setAttribute("cy", y);
  }

  move(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    const found = weightsAt(at.x, at.y);
    const weights = Object.fromEntries(this.names.map((name, index) => [name, found[index]]));
    this.show(weights);
    this.changed(weights);
  }
}
