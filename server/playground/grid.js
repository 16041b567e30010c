// One prompt under several preferences and to the plain base, all at once: the server answers them in one batch.

import { byId, make } from "./dom.js";
import { asSent, equal } from "./preference.js";
import { title } from "./methods.js";

const COLUMNS = 5; // preferences beside the base

/** The preferences of the grid: corners, halfway between two of them where there is room, and even weights. */
export function places(objectives) {
  const corner = (name) => Object.fromEntries(objectives.map((other) => [other, other === name ? 1 : 0]));
  if (objectives.length === 2) {
    return [1, 0.75, 0.5, 0.25, 0].map((share) => ({ [objectives[0]]: share, [objectives[1]]: 1 - share }));
  }
  const found = objectives.slice(0, COLUMNS - 1).map(corner);
  if (objectives.length === 3) {
    const [first, , last] = objectives;
    found.push({ ...corner(first), [first]: 0.5, [last]: 0.5 });
  }
  if (objectives.length > 1) found.push(equal(objectives));
  return found.slice(0, COLUMNS);
}

function label(weights) {
  return Object.entries(asSent(weights))
    .filter(([, weight]) => weight > 0)
    .map(([name, weight]) => `${name} ${weight.toFixed(2)}`)
    .join(", ");
}

/** The section with the grid. `actions`: ask(steering) -> events of an answer, use(weights). */
export class Grid {
  constructor(actions) {
    this.actions = actions;
    this.box = byId("grid-cells");
    this.running = null;
    this.asked = "";
  }

  /** Ask for all cells. `family`, and what is shared by all, in words. */
  async answer(family, shared) {
    this.stop();
    const controller = (this.running = new AbortController());
    this.asked = shared;
    byId("grid").dataset.state = "running";
    byId("grid-shared").textContent = shared;
    const wanted = [null, ...places(family.objectives)];
    const cells = wanted.map((weights) => this.cell(weights));
    this.box.replaceChildren(...cells.map((cell) => cell.root));
    await Promise.all(
      wanted.map((weights, index) => {
        const steering = weights === null ? { method: "base" } : { preference: asSent(weights) };
        return this.fill(cells[index], steering, controller.signal);
      }),
    );
    if (this.running !== controller) return;
    this.running = null;
    byId("grid").dataset.state = "done";
  }

  stop() {
    this.running?.abort();
    this.running = null;
  }

  /** Say that the answers belong to other settings than `shared` are now. */
  compare(shared) {
    const stale = Boolean(this.asked) && this.asked !== shared;
    byId("grid").toggleAttribute("data-stale", stale);
    byId("grid-stale").hidden = !stale;
  }

  cell(weights) {
    const text = make("p", { class: "cell-text" }, "\u2026");
    const facts = make("p", { class: "hint" });
    const parts = [make("h3", {}, weights === null ? title("base") : label(weights)), text, facts];
    if (weights !== null) {
      for (const letter of ["a", "b"]) {
        const use = make("button", { type: "button", class: "quiet" }, `To ${letter.toUpperCase()}`);
        use.addEventListener("click", () => this.actions.use(letter, weights));
        parts.push(use);
      }
    }
    return { root: make("article", { class: "cell" }, ...parts), text, facts };
  }

  async fill(cell, steering, signal) {
    let text = "";
    let tokens = 0;
    try {
      for await (const event of this.actions.ask(steering, signal)) {
        if (!event.token) {
          const words = text.split(/\s+/).filter(Boolean).length;
          cell.facts.textContent = `${words} words, ${tokens} tokens`;
          continue;
        }
        text += event.token.text;
        tokens += 1;
        cell.text.textContent = text;
      }
    } catch (error) {
      if (error.name === "AbortError") cell.facts.textContent = "stopped";
      else cell.facts.textContent = error.message;
    }
  }
}
