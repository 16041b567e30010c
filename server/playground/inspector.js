// The card beside a token: everything its trace says, in words and numbers.

import { byId, fixed, make, percent } from "./dom.js";
import { partName } from "./parts.js";

const FAR = 9999; // stands for infinity in answers of the server

/** A token's text so that blanks can be seen. */
export function visible(text) {
  if (text === "") return "no text";
  return text.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5").replaceAll(" ", "\u2423");
}

function nats(value) {
  return Math.abs(value) >= FAR ? (value < 0 ? "\u2212\u221e" : "\u221e") : fixed(value, 3);
}

function chance(logprob) {
  return `${nats(logprob)} (${percent(Math.exp(logprob), 1)})`;
}

/** [name, value] of what there is to say about a token. */
export function factsOf(token) {
  const facts = [["Logprob", chance(token.logprob)]];
  const add = (name, value, shown) => value !== null && value !== undefined && facts.push([name, shown(value)]);
  add("Under the base", token.base_logprob, chance);
  add("Shift", token.shift, (shift) => `${nats(shift)} nats`);
  add("Entropy", token.entropy, (entropy) => `${nats(entropy)} nats`);
  add("Best token changed", token.argmax_changed, (changed) => (changed ? "yes" : "no"));
  add("Outside base's 20 best", token.outside, (outside) => (outside ? "yes" : "no"));
  add("Mass of candidates", token.candidate_mass, (mass) => percent(mass, 1));
  add("From here on", token.part, (part) => partName(part, null));
  add("Block chosen of", token.block, (block) => `${block.draws} draws`);
  add("Block's score", token.block?.score, (score) => fixed(score, 3));
  add("Expert", token.expert, (name) => name);
  for (const [name, score] of Object.entries(token.router ?? {})) facts.push([`Router: ${name}`, nats(score)]);
  for (const [name, value] of Object.entries(token.values ?? {})) facts.push([`Value: ${name}`, fixed(value, 3)]);
  for (const [name, value] of Object.entries(token.monitors ?? {})) facts.push([`Monitor: ${name}`, fixed(value, 3)]);
  return facts;
}

function list(facts) {
  return make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

/** The one card of the page. */
export class Inspector {
  constructor() {
    this.box = byId("inspector");
    this.shown = null;
    this.frame = 0;
    addEventListener("scroll", () => this.hide(), { passive: true, capture: true });
    addEventListener("keydown", (event) => event.key === "Escape" && this.dismiss());
  }

  /** Show it at the next frame if the focus is still there: moving the focus may scroll, which hides the card. */
  showFocused(token, span) {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => document.activeElement === span && this.show(token, span));
  }

  /** Hide it, and do not show what waits for the next frame. */
  dismiss() {
    cancelAnimationFrame(this.frame);
    this.hide();
  }

  /** Show what `token` says beside `span`. */
  show(token, span) {
    this.shown = span;
    span.setAttribute("aria-describedby", "inspector");
    const head = make("p", { class: "inspected" }, make("b", { class: "mono" }, visible(token.reasoning_content ?? token.text)), ` id ${token.id}`);
    this.box.replaceChildren(head, list(factsOf(token)));
    if (token.top?.length) {
      const others = token.top.map(({ text, logprob }) => [make("b", { class: "mono" }, visible(text)), chance(logprob)]);
      this.box.append(make("p", { class: "likely" }, "Most likely here"), list(others));
    }
    this.box.hidden = false;
    this.place(span);
  }

  /** Hide it; with a span, only if it shows that one. */
  hide(span) {
    if (span !== undefined && span !== this.shown) return;
    this.shown = null;
    this.box.hidden = true;
  }

  place(span) {
    const gap = 8;
    const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const { width, height } = this.box.getBoundingClientRect();
    const left = Math.min(Math.max(gap, at.left), innerWidth - width - gap);
    const below = at.bottom + gap;
    const top = below + height + gap <= innerHeight ? below : Math.max(gap, at.top - height - gap);
    this.box.style.setProperty("left", `${Math.max(gap, left)}px`);
    this.box.style.setProperty("top", `${top}px`);
  }
}
