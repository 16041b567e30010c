// Both answers in numbers, and where they part.

import { byId, fixed, make, percent } from "./dom.js";

const NOTHING = "\u2013";

const ROWS = [
  ["Words", ({ words }) => (words === null ? null : String(words))],
  ["Tokens", ({ tokens }) => (tokens ? String(tokens) : null)],
  ["Mean shift", ({ shift }) => shift === null ? null : `${fixed(shift, 3)} nats`],
  ["Best token changed", ({ changed }) => changed === null ? null : percent(changed)],
  ["Outside base\u2019s 20 best", ({ outside }) => outside === null ? null : percent(outside)],
  ["First token after", ({ first }) => first === null ? null : `${first.toFixed(2)} s`],
  ["Tokens a second", ({ rate }) => rate === null ? null : rate.toFixed(1)],
];

/** The first index at which the tokens of two answers differ; -1 where one is the beginning of the other. */
export function forkOf(one, two) {
  const length = Math.min(one.length, two.length);
  for (let index = 0; index < length; index += 1) if (one[index].id !== two[index].id) return index;
  return -1;
}

/** Show both answers side by side in the table, and mark where they part. */
export function compare(a, b) {
  const both = [a, b];
  const head = make("tr", {}, make("td", {}), ...["a", "b"].map((side) => heading(side)));
  const rows = ROWS.map(([name, shown]) => row(name, both.map((answer) => shown(answer.numbers))));
  rows.push(row("Ended by", both.map((answer) => endOf(answer))));
  rows.push(row("Seed", both.map((answer) => (answer.reply ? String(answer.reply.seed) : null))));
  byId("compare").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
  const settled = both.every((answer) => answer.tokens.length && !answer.running);
  const fork = settled ? forkOf(a.tokens, b.tokens) : -1;
  for (const answer of both) answer.markFork(fork);
  if (settled) byId("fork").textContent = words(fork, a.tokens.length, b.tokens.length);
}

function words(fork, one, two) {
  if (fork > 0) return `The first ${fork === 1 ? "token is" : `${fork} tokens are`} the same; there they part.`;
  if (fork === 0) return "They differ from the first token on.";
  return one === two ? "Both say the same." : "One is the beginning of the other.";
}

function endOf(answer) {
  const reason = answer.reply?.choices[0].finish_reason;
  if (reason === "content_filter") return `monitor ${answer.reply.steering.monitor?.stopped[0]?.name ?? ""}`.trim();
  return reason ?? stateOf(answer);
}

function stateOf(answer) {
  return { stopped: "you", failed: "an error" }[answer.root.dataset.state] ?? null;
}

function heading(side) {
  return make("th", { scope: "col" }, make("span", { class: `badge ${side}` }, side.toUpperCase()));
}

function row(name, values) {
  return make("tr", {}, make("th", { scope: "row" }, name), ...values.map((value) => make("td", {}, value ?? NOTHING)));
}
