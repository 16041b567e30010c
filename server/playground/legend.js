// What the colours of tokens mean.

import { make } from "./dom.js";

/** Upper ends, in nats, of the classes of shift; beyond the last one is the last class. */
export const EDGES = [0.02, 0.1, 0.3, 1, 3];
const NAMES = ["< 0.02", "0.02", "0.1", "0.3", "1", "\u2265 3 nats"];

/** The class of a shift, 0 to 5. */
export function binOf(shift) {
  const index = EDGES.findIndex((edge) => shift < edge);
  return index < 0 ? EDGES.length : index;
}

/** Fill the list under an answer. `indexOf(name)` is an expert's colour. */
export function fillLegend(list, by, tokens, indexOf, percent) {
  const key = by === "expert" ? [by, ...shares(tokens).map(([name, share]) => `${name} ${percent(share)}`)].join() : by;
  const traced = tokens.some((token) => token.shift !== null);
  const state = `${key} ${traced} ${tokens.length > 0}`;
  if (list.dataset.state === state) return;
  list.dataset.state = state;
  list.replaceChildren(...entries(by, tokens, traced, indexOf, percent));
}

function entries(by, tokens, traced, indexOf, percent) {
  if (by === "none") return [];
  if (by === "shift") {
    if (tokens.length && !traced) return [make("li", { class: "said" }, "Without a trace there are no shifts.")];
    const steps = NAMES.map((name, bin) => {
      const swatch = make("span", { class: "token" }, name);
      swatch.dataset.shift = bin;
      return make("li", {}, swatch);
    });
    const changed = make("li", { class: "said" }, make("span", { class: "token changed" }, "dotted"), " best token changed");
    return [make("li", { class: "said" }, "KL from base"), ...steps, changed];
  }
  const found = shares(tokens);
  if (!found.length) {
    return tokens.length ? [make("li", { class: "said" }, "This method has no experts.")] : [];
  }
  return found.map(([name, share]) => {
    const swatch = make("span", { class: "token" }, name ?? "router");
    if (name !== null) swatch.dataset.expert = indexOf(name);
    return make("li", {}, swatch, ` ${percent(share)}`);
  });
}

/** [expert, share of tokens], experts in order of their names; the router, which is null, last. */
function shares(tokens) {
  const counts = new Map();
  for (const { expert } of tokens) counts.set(expert, (counts.get(expert) ?? 0) + 1);
  const named = [...counts].filter(([name]) => name !== null).sort(([one], [two]) => (one < two ? -1 : 1));
  if (!named.length) return [];
  if (counts.has(null)) named.push([null, counts.get(null)]);
  return named.map(([name, count]) => [name, count / tokens.length]);
}
