// Tokens of an answer under the pointer and the keyboard: one stop of the tab key, arrows within.

/** Lets one answer's tokens be looked at. */
export class Walk {
  /** `box` holds the tokens; `spans` and `tokens` are lists that grow; `inspector` is the card beside a token. */
  constructor(box, inspector) {
    this.box = box;
    this.inspector = inspector;
    this.clear([], []);
    this.listen();
  }

  /** Another answer begins. */
  clear(spans, tokens) {
    this.spans = spans;
    this.tokens = tokens;
    this.current = -1;
    this.box.removeAttribute("role");
  }

  /** There is something to walk on. */
  begin() {
    if (this.current >= 0) return;
    this.current = 0;
    this.spans[0].tabIndex = 0;
    this.box.setAttribute("role", "listbox");
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

