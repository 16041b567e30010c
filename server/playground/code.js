// The dialog with a side's request as others would send it.

import { apiKey, serverUrl } from "./api.js";
import { byId, confirmOn, copy } from "./dom.js";
import { asCurl, asPython } from "./snippets.js";

/** The one dialog of the page. */
export class Code {
  constructor() {
    byId("code-close").addEventListener("click", () => byId("code").close());
    for (const button of document.querySelectorAll("[data-copy]")) {
      button.addEventListener("click", async () => {
        if (await copy(byId(button.dataset.copy).textContent)) confirmOn(button, "Copied");
      });
    }
  }

  /** Show the `body` of a side's request. */
  show(letter, body) {
    byId("code-title").textContent = `Request ${letter.toUpperCase()}`;
    byId("curl").textContent = asCurl(serverUrl(), body, Boolean(apiKey()));
    byId("python").textContent = asPython(serverUrl(), body);
    byId("code").showModal();
  }
}
