// Prompt, format and sampling: what both sides share, unless they are told apart.

import { byId } from "./dom.js";

const TEXTS = { prompt: "prompt", promptB: "prompt-b", system: "system", ask: "rank-question" };
const CHECKS = { locked: "locked", live: "live" };
const NUMBERS = {
  temperature: "temperature", topP: "top-p", maxTokens: "max-tokens", alternatives: "alternatives", seed: "seed",
  seedB: "seed-b", answers: "answers-of-each",
};
const CHOICES = { thinking: "thinking", verify: "verify", rank: "rank" };

/** What the page begins with. A number that is undefined is left to the server. */
export function newForm() {
  return {
    prompt: "What is a computer?", promptB: "", system: "", format: "chat", temperature: undefined, topP: undefined,
    maxTokens: 160, alternatives: 3, seed: 7, seedB: undefined, locked: true, colours: "auto",
    thinking: "", verify: "", rank: "", answers: undefined, ask: "", live: false,
  };
}

/** A seed that JSON and Python read exactly. */
export function newSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/** Write a form's state into the controls. */
export function writeForm(form) {
  for (const [name, id] of Object.entries(TEXTS)) byId(id).value = form[name];
  for (const [name, id] of Object.entries(NUMBERS)) byId(id).value = form[name] ?? "";
  for (const name of ["format", "colours"]) {
    document.querySelector(`input[name="${name}"][value="${form[name]}"]`).checked = true;
  }
  for (const [name, id] of Object.entries(CHECKS)) byId(id).checked = form[name];
  for (const [name, id] of Object.entries(CHOICES)) byId(id).value = form[name];
  if (form.system || form.thinking || form.rank) byId("more").open = true;
  follow(form);
}

/** Keep `form` up to date with the controls; `changed(name)` hears of every edit. */
export function listenToForm(form, changed) {
  for (const [name, id] of Object.entries(TEXTS)) {
    byId(id).addEventListener("input", () => {
      form[name] = byId(id).value;
      changed(name);
    });
  }
  for (const [name, id] of Object.entries(NUMBERS)) {
    byId(id).addEventListener("input", () => {
      form[name] = byId(id).value === "" ? undefined : Number(byId(id).value);
      changed(name);
    });
  }
  for (const name of ["format", "colours"]) {
    for (const radio of document.querySelectorAll(`input[name="${name}"]`)) {
      radio.addEventListener("change", () => {
        form[name] = radio.value;
        follow(form);
        changed(name);
      });
    }
  }
  byId("locked").addEventListener("change", () => {
    form.locked = byId("locked").checked;
    if (!form.locked) {
      form.promptB ||= form.prompt;
      form.seedB ??= newSeed();
      byId("prompt-b").value = form.promptB;
      byId("seed-b").value = form.seedB;
    }
    follow(form);
    changed("locked");
  });
  byId("live").addEventListener("change", () => {
    form.live = byId("live").checked;
    changed("live");
  });
  for (const [name, id] of Object.entries(CHOICES)) {
    byId(id).addEventListener("change", () => {
      form[name] = byId(id).value;
      follow(form);
      changed(name);
    });
  }
  byId("dice").addEventListener("click", () => {
    form.seed = newSeed();
    byId("seed").value = form.seed;
    changed("seed");
  });
}

function follow(form) {
  byId("prompt-b-box").hidden = form.locked;
  byId("seed-b-box").hidden = form.locked;
  byId("prompt-of").textContent = form.locked ? "" : "of A";
  byId("system-box").hidden = form.format !== "chat";
  byId("verify-box").hidden = form.thinking === "" || form.thinking === "0";
  byId("answers-box").hidden = form.rank === "";
  byId("ask-box").hidden = form.rank !== "ask";
}
