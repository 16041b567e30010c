// What a preference becomes: bars of signed member weights, the base's share, the sources, warnings.

import { fixed, make, signed } from "./dom.js";

/** The panel of one side. */
export class Coefficients {
  constructor(box) {
    this.box = box;
    this.box.replaceChildren(make("p", { class: "hint" }, "\u2026"));
  }

  /** An answer of POST /v1/coefficients. */
  show(reply) {
    this.reply = reply;
    const parts = [];
    const members = Object.entries(reply.coefficients);
    if (members.length) {
      const rows = [...members, ["base, the rest", reply.base_share]];
      parts.push(bars("Weights of members", rows, reply.coefficients));
      const facts = [`absolute weights sum to ${fixed(reply.l1)}`];
      if (reply.condition !== null) facts.push(`condition ${fixed(reply.condition, 1)}`);
      const meaning = "How much weight is moved in all; the condition tells how much a small change of the preference can change it";
      parts.push(make("p", { class: "hint facts", title: meaning }, facts.join(" \u00b7 ")));
    }
    const experts = reply.sources.filter(({ role }) => role === "expert").map(({ name }) => name);
    if (experts.length) {
      // Every expert has the same weight where it is chosen: what tells them apart is how often that is.
      parts.push(make("p", { class: "hint" }, `Each token comes from the router and one expert: ${experts.join(", ")}.`));
      const rows = experts.map((name) => [name, this.shares?.[name] ?? 0]);
      if (this.shares) parts.push(bars("Share of the last answer's tokens", rows, {}));
    } else if (reply.sources.length > 1 || !members.length) {
      // One merged model says no more than its members do.
      const rows = reply.sources.map((source) => [labelOf(source), source.weight]);
      parts.push(bars("Weights of sources at every token", rows, {}));
    }
    if (reply.warnings.length) {
      parts.push(make("ul", { class: "warnings" }, ...reply.warnings.map((text) => make("li", {}, text))));
    }
    this.box.replaceChildren(...parts);
  }

  /** Which share of an answer's tokens each expert wrote; nothing for methods that do not route. */
  wrote(shares) {
    this.shares = shares;
    if (this.reply) this.show(this.reply);
  }

  /** Why there are none. */
  fail(message) {
    this.reply = null;
    this.box.replaceChildren(make("p", { class: "problem", role: "status" }, message));
  }
}

function labelOf(source) {
  const named = source.name === source.role ? source.name : `${source.role} ${source.name}`;
  return source.model ? `${named} (${source.model})` : named;
}

/** A table whose last column shows the numbers as bars from a common zero. */
function bars(caption, rows, signedRows) {
  const most = Math.max(1, ...rows.map(([, value]) => Math.abs(value)));
  const negative = rows.some(([, value]) => value < 0);
  const body = rows.map(([name, value]) => {
    const bar = make("span", { class: value < 0 ? "bar minus" : "bar" });
    bar.style.setProperty("--length", String(Math.min(1, Math.abs(value) / most)));
    const track = make("td", { class: negative ? "track centred" : "track", "aria-hidden": "true" }, bar);
    const text = name in signedRows ? signed(value) : fixed(value);
    return make("tr", {}, make("th", { scope: "row", title: name }, name), track, make("td", { class: "number" }, text));
  });
  return make("table", { class: "bars-table" }, make("caption", {}, caption), make("tbody", {}, ...body));
}
