// One answer: its tokens as they come, coloured by what guidance did, and what they say when looked at.

import { fixed, fromTemplate, make, percent } from "./dom.js";
import { binOf, fillLegend } from "./legend.js";
import { numbersOf, wordsOf } from "./numbers.js";
import { partName } from "./parts.js";
import { showRanked } from "./ranked.js";
import { spark } from "./spark.js";
import { Walk } from "./walk.js";

/** One side's answer. `actions`: toggle(letter), and steer(letter), its rest by the settings as they are now. */
export class Answer {
  constructor(letter, inspector, actions) {
    this.letter = letter;
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
    this.find(".steer").addEventListener("click", () => actions.steer(letter));
    this.find(".thought-toggle").addEventListener("click", () => this.showThought(this.box.classList.contains("folded")));
    this.colours = "auto";
    this.experts = [];
    this.walk = new Walk(this.box, inspector);
    this.clear();
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  clear() {
    this.tokens = [];
    this.spans = [];
    this.waiting = [];
    this.walk.clear(this.spans, this.tokens);
    this.parts = []; // {at, name}: where it was steered otherwise on the way
    this.last = null; // the steering that the last token came under
    this.thought = null;
    this.reply = null;
    this.firstAt = this.lastAt = null;
    this.box.replaceChildren();
    this.find(".plain").textContent = "";
    this.find(".problem").hidden = true;
    this.find(".retry").hidden = true;
    this.setStale(false);
    spark(this.find(".spark"), []);
    this.find(".warnings").hidden = true;
    this.find(".ended").hidden = true;
    showRanked(this.find(".ranked"), []);
    this.find(".thought-toggle").hidden = true;
    this.say("");
    this.find(".meter").textContent = "";
    this.root.dataset.state = "idle";
    this.legend();
  }

  /** A new answer begins; `name` says how it was asked for, `steering` what steers it. */
  start(name, steering) {
    this.clear();
    this.last = { method: steering.method, preference: steering.preference ?? null };
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
    for (const token of this.waiting.splice(0)) this.place(token);
    this.walk.begin();
    if (follow) this.page.scrollTop = this.page.scrollHeight;
    this.meter();
    this.legend();
  }

  /** Put a token where it belongs: a mark in front of it where a part begins, and a thought apart from the answer. */
  place(token) {
    if (token.part) this.box.append(this.mark(token.part));
    if (token.reasoning_content === undefined) this.box.append(this.span(token, token.text));
    else this.thoughts().append(this.span(token, token.reasoning_content));
  }

  mark(part) {
    const name = partName(part, this.last);
    this.last = part;
    this.parts.push({ at: this.spans.length, name });
    // Said by the card of the token, and once by the status line; between options there is no place for a text.
    return make("span", { class: "part", "aria-hidden": "true" }, name);
  }

  thoughts() {
    if (this.thought) return this.thought;
    this.thought = make("span", { class: "thought", role: "group", "aria-label": "Thought" });
    this.box.append(this.thought);
    this.find(".thought-toggle").hidden = false;
    this.showThought(true);
    return this.thought;
  }

  showThought(shown) {
    this.box.classList.toggle("folded", !shown);
    this.find(".thought-toggle").setAttribute("aria-expanded", String(shown));
    this.find(".thought-toggle").textContent = shown ? "Hide the thought" : "Show the thought";
  }

  span(token, text) {
    const index = this.spans.length;
    const span = make("span", { class: "token", role: "option", tabindex: -1, "aria-selected": "false" }, text);
    span.dataset.index = index;
    if (!text.trim()) span.setAttribute("aria-label", named(text));
    if (text === "") span.classList.add("silent");
    if (text.includes("\n")) span.classList.add("break");
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

  /** A whole reply: the best of its answers as if it had come token by token, and all with their scores. */
  whole(reply) {
    const [best] = reply.choices;
    for (const token of best.tokens ?? [{ text: best.text, shift: null, top: [] }]) this.push(token);
    this.firstAt = this.lastAt = null; // they have come at once: there is no first one to wait for, and no pace
    this.finish(reply);
    showRanked(this.find(".ranked"), reply.choices);
  }

  /** The stream's last event. */
  finish(reply) {
    this.reply = reply;
    this.flush();
    this.setState("done");
    const { warnings, monitor, thoughts } = reply.steering;
    const trip = monitor?.stopped.find(({ index }) => index === 0);
    const thought = thoughts?.find(({ index, ended }) => index === 0 && ended);
    const ended = [];
    if (thought) ended.push(`The verifier ended the thought at token ${thought.ended}.`);
    if (trip) ended.push(`Stopped by monitor ${trip.name} at token ${trip.token} (value ${fixed(trip.value, 3)}).`);
    this.find(".ended").textContent = ended.join(" ");
    this.find(".ended").hidden = !ended.length;
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

  /** Whether the settings are no longer those that made this answer; while it is written its rest can follow them. */
  setStale(stale, steerable = false) {
    this.root.toggleAttribute("data-stale", stale);
    this.find(".stale-note").hidden = !stale;
    this.find(".steer").hidden = !steerable;
  }

  /** What came of a change on the way; `bad` where nothing did. */
  say(text, bad = false) {
    const line = this.find(".steered");
    line.textContent = text;
    line.hidden = !text;
    line.classList.toggle("refused", bad);
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
    return numbersOf(this.tokens, this);
  }

  meter() {
    const { tokens, shift } = this.numbers;
    const parts = [];
    if (this.root.dataset.state === "stopped") parts.push("stopped");
    if (tokens) parts.push(`${wordsOf(this.text)}\u00a0words`, `${tokens}\u00a0tokens`);
    const searched = this.reply?.steering.search?.choices?.[0];
    if (searched) parts.push(`${searched.tokens}\u00a0drawn`);
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
}

function named(text) {
  if (text === "") return "no text";
  return text.includes("\n") ? "line break" : "space";
}
