// Answers that were ranked: how they are asked for, and their scores beside them.

import { fixed, make } from "./dom.js";

/** What answers may be ranked by, by the form's choice; `ask` is the form's question. */
export const RANKS = {
  "": () => undefined,
  explicit: () => "explicit",
  implicit: () => "implicit",
  likelihood: () => "likelihood",
  router: () => "router",
  ask: (ask) => ({ ask }),
};
const ANSWERS = 4; // where the form does not say

/** What a ranked request has beside the others' fields: how many answers there are, and what `steering` is told. */
export function ranking(form) {
  const by = (RANKS[form.rank] ?? RANKS[""])(form.ask);
  if (by === undefined) return null;
  const n = form.answers ?? ANSWERS;
  return { n, rank: { by, keep: n } };
}

/** Fill `list` with all answers of a ranked reply and their scores, best first; empty it where there are none. */
export function showRanked(list, choices) {
  const scored = choices.filter(({ score }) => score !== undefined);
  list.replaceChildren(
    ...scored.map(({ score, text }) =>
      make("li", {}, make("span", { class: "score number" }, fixed(score, 3)), make("span", { class: "said" }, text)),
    ),
  );
  list.hidden = !scored.length;
}
