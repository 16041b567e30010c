// How far control moved each token of an answer, as a line: KL from the base in nats, by token.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 28;

/** Draw the shifts of `tokens` into `svg`; it is invisible, in its place, where none is known. */
export function spark(svg, tokens) {
  const shifts = tokens.map((token) => token.shift).filter((shift) => typeof shift === "number");
  svg.toggleAttribute("data-empty", shifts.length < 2);
  if (shifts.length < 2) return;
  const most = Math.max(1, ...shifts);
  const points = shifts.map((shift, index) => {
    const x = (index / (shifts.length - 1)) * WIDTH;
    return `${x.toFixed(1)},${(HEIGHT - 1 - (shift / most) * (HEIGHT - 2)).toFixed(1)}`;
  });
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.join(" "));
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("aria-label", `KL from the base by token, at most ${Math.max(...shifts).toFixed(2)} nats`);
  svg.replaceChildren(line);
}
