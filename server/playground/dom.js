// Small helpers around the document. Text only ever becomes text: nothing here takes markup.

/** The element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A copy of the template's first element. */
export function fromTemplate(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

/**
 * A new element: attributes (class as `class`; false and null are left out), then children, which are elements or text.
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Calls `action` once nothing has asked for it for `ms` milliseconds. */
export function debounced(action, ms) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), ms);
  };
}

/** A number with this many digits after the point, and a true minus sign. */
export function fixed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
}

/** The same with a sign in front of positive numbers too. */
export function signed(value, digits = 2) {
  const text = fixed(value, digits);
  return Number(value.toFixed(digits)) > 0 ? `+${text}` : text;
}

/** A share as a percentage. */
export function percent(share, digits = 0) {
  return `${(100 * share).toFixed(digits)}\u00a0%`;
}

/** Puts text on the clipboard; true where that worked. Pages that are not served securely have no clipboard API. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea", { class: "unseen", readonly: true });
    area.value = text;
    const from = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    from?.focus();
    return done;
  }
}

/** Says on a button, for a moment, that it worked. */
export function confirmOn(button, text) {
  const before = (button.dataset.label ??= button.textContent);
  button.textContent = text;
  setTimeout(() => (button.textContent = before), 1600);
}
