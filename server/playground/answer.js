// One answer: its tokens as they come, coloured by what guidance did, and what they say when looked at.

import { fixed, fromTemplate, make, percent } from "./dom.js";
import { binOf, fillLegend } from "./legend.js";
import { spark } from "./spark.js";

/** One side's answer. `actions`: toggle(letter). */
export class Answer {
  constructor(letter, inspector, actions) {
    this.letter = letter;
    this.inspector = inspector;
    this.root = fromTemplate("answer");
    this.root.id = `answer-${letter}`;
    const badge = this.find(".badge");
    badge.textContent = letter.toUpperCase();
    badge.classList.add(letter);
    this.find("h2").id = `answer-title-${letter}`;
    this.root.setAttribute("aria-labelledby", `answer-title-${letter}`);
    this.box = this.find(".tokens");
    this.page = this.find(".page");
    this.button = this.find(".toggle");
    this.button.addEventListener("click", () => actions.toggle(letter));
    this.find(".retry").addEventListener("click", () => actions.toggle(letter));
    this.colours = "auto";
    this.experts = [];
    this.listen();
    this.clear();
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  clear() {
    this.tokens = [];
    this.spans = [];
    this.waiting = [];
    this.current = -1;
    this.reply = null;
    this.firstAt = this.lastAt = null;
    this.box.replaceChildren();
    this.box.removeAttribute("role");
    this.find(".plain").textContent = "";
    this.find(".problem").hidden = true;
    this.find(".retry").hidden = true;
    this.setStale(false);
    spark(this.find(".spark"), []);
    this.find(".warnings").hidden = true;
    this.find(".meter").textContent = "";
    this.root.dataset.state = "idle";
    this.legend();
  }

  /** A new answer begins; `name` says how it was asked for. */
  start(name) {
    this.clear();
    this.find(".name").textContent = name;
    this.startedAt = performance.now();
    this.setState("running");
    this.announce("");
  }

  /** One token. */
  push(token) {
    this.lastAt = performance.now();
    this.firstAt ??= this.lastAt;
    this.tokens.push(token);
    this.waiting.push(token);
    // Many tokens may come within one frame; the page is touched once.
    if (this.waiting.length === 1) requestAnimationFrame(() => this.flush());
  }

  flush() {
    if (!this.waiting.length) return;
    const follow = this.page.scrollHeight - this.page.scrollTop - this.page.clientHeight < 24;
    this.box.append(...this.waiting.splice(0).map((token) => this.span(token)));
    if (this.current < 0) {
      this.current = 0;
      this.spans[0].tabIndex = 0;
      this.box.setAttribute("role", "listbox");
    }
    if (follow) this.page.scrollTop = this.page.scrollHeight;
    this.meter();
    this.legend();
  }

  span(token) {
    const index = this.spans.length;
    const span = make("span", { class: "token", role: "option", tabindex: -1, "aria-selected": "false" }, token.text);
    span.dataset.index = index;
    if (!token.text.trim()) span.setAttribute("aria-label", named(token.text));
    if (token.text === "") span.classList.add("silent");
    if (token.text.includes("\n")) span.classList.add("break");
    if (token.shift !== null) span.dataset.shift = binOf(token.shift);
    if (token.argmax_changed) span.classList.add("changed");
    if (token.expert) span.dataset.expert = this.expertIndex(token.expert);
    this.spans.push(span);
    return span;
  }

  expertIndex(name) {
    if (!this.experts.includes(name)) this.experts.push(name);
    return this.experts.indexOf(name) % 8;
  }

  /** The stream's last event. */
  finish(reply) {
    this.reply = reply;
    this.flush();
    this.setState("done");
    const { warnings } = reply.steering;
    const list = this.find(".warnings");
    list.replaceChildren(...warnings.map((text) => make("li", {}, text)));
    list.hidden = !warnings.length;
    this.meter();
    this.announce(`Answer ${this.letter.toUpperCase()}: ${this.text}`);
  }

  /** Stopped before its end. */
  stopped() {
    this.flush();
    this.setState("stopped");
    this.announce(`Answer ${this.letter.toUpperCase()} was stopped: ${this.text}`);
  }

  /** It failed, or was refused. */
  fail(message) {
    this.flush();
    this.setState("failed");
    const box = this.find(".problem");
    box.textContent = message;
    box.hidden = false;
    this.find(".retry").hidden = false;
  }

  /** Whether the settings are no longer those that made this answer. */
  setStale(stale) {
    this.root.toggleAttribute("data-stale", stale);
    this.find(".stale-note").hidden = !stale;
  }

  get text() {
    return this.tokens.map((token) => token.text).join("");
  }

  get running() {
    return this.root.dataset.state === "running";
  }

  setState(state) {
    this.root.dataset.state = state;
    this.box.setAttribute("aria-busy", String(state === "running"));
    this.box.setAttribute("aria-label", `Tokens of answer ${this.letter.toUpperCase()}`);
    this.box.setAttribute("aria-orientation", "horizontal");
    this.button.textContent = state === "running" ? "Stop" : "Answer";
    this.button.setAttribute("aria-label", `${this.button.textContent} ${this.letter.toUpperCase()}`);
    this.meter();
    this.legend();
  }

  // Said once, as a whole: tokens one by one, and two answers at a time, could not be followed.
  announce(text) {
    this.find(".plain").textContent = text;
  }

  /** What can be said in numbers, as far as it is known. */
  get numbers() {
    const shifts = this.tokens.map((token) => token.shift).filter((shift) => shift !== null && shift !== undefined);
    const changed = this.tokens.filter((token) => token.argmax_changed).length;
    const guided = this.tokens.filter((token) => token.outside !== null && token.outside !== undefined);
    const seconds = this.lastAt === null ? 0 : (this.lastAt - this.firstAt) / 1000;
    const share = (part, whole) => (whole ? part / whole : null);
    return {
      tokens: this.tokens.length,
      shift: share(shifts.reduce((sum, shift) => sum + shift, 0), shifts.length),
      changed: shifts.length ? share(changed, this.tokens.length) : null,
      outside: share(guided.filter((token) => token.outside).length, guided.length),
      first: this.firstAt === null ? null : (this.firstAt - this.startedAt) / 1000,
      rate: seconds > 0 ? (this.tokens.length - 1) / seconds : null,
    };
  }

  meter() {
    const { tokens, shift } = this.numbers;
    const parts = [];
    if (this.root.dataset.state === "stopped") parts.push("stopped");
    const words = this.text.split(/\s+/).filter(Boolean).length;
    if (tokens) parts.push(`${words}\u00a0words`, `${tokens}\u00a0tokens`);
    if (shift !== null) parts.push(`shift\u00a0${fixed(shift)}`);
    if (!this.running) spark(this.find(".spark"), this.tokens);
    this.find(".meter").textContent = parts.join(" \u00b7 ");
  }

  /** Colour by "shift", "expert", "none", or what there is ("auto"). */
  paint(colours) {
    this.colours = colours;
    this.legend();
  }

  legend() {
    const routed = this.tokens.some((token) => token.expert);
    const by = this.colours === "auto" ? (routed ? "expert" : "shift") : this.colours;
    this.box.dataset.colours = by;
    fillLegend(this.find(".legend"), by, this.tokens, (name) => this.expertIndex(name), percent);
  }

  /** Mark the first token at which this answer leaves the other; -1 for none. */
  markFork(index) {
    this.box.querySelector(".fork")?.classList.remove("fork");
    this.spans[index]?.classList.add("fork");
  }

  listen() {
    const spanOf = (event) => event.target.closest?.(".token");
    const tokenOf = (span) => this.tokens[Number(span.dataset.index)];
    this.box.addEventListener("pointerover", (event) => {
      const span = spanOf(event);
      if (span) this.inspector.show(tokenOf(span), span);
    });
    this.box.addEventListener("pointerout", (event) => {
      if (spanOf(event) && spanOf(event) !== document.activeElement) this.inspector.hide(spanOf(event));
    });
    this.box.addEventListener("focusin", (event) => {
      const span = spanOf(event);
      if (!span) return;
      this.select(Number(span.dataset.index));
      this.inspector.showFocused(tokenOf(span), span);
    });
    this.box.addEventListener("focusout", () => this.inspector.dismiss());
    this.box.addEventListener("keydown", (event) => this.key(event));
  }

  select(index) {
    const before = this.spans[this.current];
    if (before) {
      before.tabIndex = -1;
      before.setAttribute("aria-selected", "false");
    }
    this.current = index;
    this.spans[index].tabIndex = 0;
    this.spans[index].setAttribute("aria-selected", "true");
  }

  key(event) {
    const last = this.spans.length - 1;
    const to = {
      ArrowRight: () => this.current + 1,
      ArrowLeft: () => this.current - 1,
      ArrowDown: () => this.line(1),
      ArrowUp: () => this.line(-1),
      Home: () => 0,
      End: () => last,
    }[event.key];
    if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.spans[Math.min(Math.max(0, to()), last)].focus();
  }

  /** The token under or above the current one. */
  line(direction) {
    const here = this.spans[this.current].getClientRects()[0];
    if (!here) return this.current + direction;
    let best = this.current;
    let distance = Infinity;
    for (const [index, span] of this.spans.entries()) {
      const at = span.getClientRects()[0];
      const rows = at ? (at.top - here.top) / here.height : 0;
      if (rows * direction < 0.5) continue;
      const away = Math.abs(rows) * 10_000 + Math.abs(at.left - here.left);
      if (away < distance) [best, distance] = [index, away];
    }
    return best;
  }
}

function named(text) {
  if (text === "") return "no text";
  return text.includes("\n") ? "line break" : "space";
}
