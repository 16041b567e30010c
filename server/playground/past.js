// The answers of this visit, newest first: each brings back the settings that made it. Forgotten with the page.

import { byId, make } from "./dom.js";

const KEPT = 20;

/** The list. `restore(fragment)` puts settings back. */
export class Past {
  constructor(restore) {
    this.restore = restore;
    this.list = byId("past-list");
  }

  /**
   * Keep an answer: which side, how it was asked for and then steered, what was asked, the text, and the fragment of the
   * settings that it began with.
   */
  add(letter, how, prompt, text, fragment) {
    const button = make("button", { type: "button", class: "quiet" }, "Bring back");
    button.addEventListener("click", () => this.restore(fragment));
    const head = make("p", { class: "past-head" }, make("span", { class: `badge ${letter}` }, letter.toUpperCase()), ` ${how.join("; ")}`);
    const entry = make("li", {}, head, make("p", { class: "hint" }, prompt), make("p", { class: "past-text" }, text), button);
    this.list.prepend(entry);
    while (this.list.childElementCount > KEPT) this.list.lastElementChild.remove();
    byId("past").hidden = false;
    byId("past-count").textContent = `(${this.list.childElementCount})`;
  }
}
