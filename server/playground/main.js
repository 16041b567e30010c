// The page: loads the family, keeps the state, runs the answers.

import { Answer } from "./answer.js";
import { call, generate, setApiKey } from "./api.js";
import { Code } from "./code.js";
import { compare } from "./compare.js";
import { byId, confirmOn, copy, debounced, make } from "./dom.js";
import { listenToForm, newForm, writeForm } from "./form.js";
import { Grid } from "./grid.js";
import { Inspector } from "./inspector.js";
import { familyIn, fragmentOf, readFragment } from "./link.js";
import { title } from "./methods.js";
import { Past } from "./past.js";
import { cellBody, coefficientsBody, generateBody } from "./request.js";
import { Runs } from "./runs.js";
import { Side } from "./side.js";
import { newSide } from "./steering.js";

const LETTERS = ["a", "b"];
const EXAMPLES = {
  "A computer": "What is a computer?",
  "A Sunday": "What is a good way to spend a Sunday?",
  Cats: "Why do people keep cats?",
  "Twelve coins": "Ben has 12 coins, gives 4 to Tom and then finds 6. How many coins does Ben have now?",
};
const form = newForm();
const state = { family: null, form, sides: {}, trace: true };
const previews = {};

const inspector = new Inspector();
const code = new Code();
const sides = Object.fromEntries(
  LETTERS.map((letter) => [letter, new Side(letter, { changed: sideChanged, copy: copySide, code: showCode })]),
);
const answers = Object.fromEntries(LETTERS.map((letter) => [letter, new Answer(letter, inspector, { toggle, steer })]));

const grid = new Grid({ ask: (steering, signal) => generate(cellBody(state, steering), signal), use });
const past = new Past((fragment) => {
  history.replaceState(null, "", `#${fragment}`);
  show(fragment);
});
const runs = new Runs({ state, sides, answers, past, began: rememberNow, changed: update, notice, needsKey: askForKey });

// -- what the server has ------------------------------------------------------------------------------------------

async function load() {
  let listed;
  try {
    listed = (await call("v1/families")).data;
    const names = listed.map((family) => family.name);
    const wanted = familyIn(location.hash.slice(1));
    await choose(names.includes(wanted) ? wanted : names[0], names);
  } catch (error) {
    if (error.status === 401) return askForKey(error.message);
    notice(error.status === 503 ? `${error.message}. Trying again.` : error.message);
    setTimeout(load, 1000 * Math.min(10, Math.max(1, Number(error.retryAfter) || 2)));
    return;
  }
  byId("key-form").hidden = true;
}

async function choose(name, names) {
  state.family = await call(`/v1/families/${encodeURIComponent(name)}`);
  const select = byId("family");
  select.replaceChildren(...names.map((entry) => new Option(entry, entry)));
  select.value = name;
  select.disabled = names.length < 2;
  const { members, objectives } = state.family;
  byId("about").textContent = `${count(members.length, "member")}, ${count(objectives.length, "objective")}`;
  notice("");
  for (const [field, id] of [["temperature", "temperature"], ["top_p", "top-p"]]) {
    byId(id).placeholder = state.family.sampling[field] ?? "default";
  }
  for (const letter of LETTERS) {
    sides[letter].setFamily(state.family);
    answers[letter].experts = members.filter(({ kind }) => kind === "expert").map((member) => member.name);
  }
  show(location.hash.slice(1));
  document.querySelector("main").classList.remove("loading");
  ready(true);
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Take over what a fragment says; where it says nothing, two sides that differ. */
function show(fragment) {
  const { family } = state;
  const found = readFragment(fragment, family, form);
  for (const [index, letter] of LETTERS.entries()) {
    state.sides[letter] = found.sides[letter] ?? newSide(family, { preference: leaning(family, index) });
    sides[letter].show(state.sides[letter]);
    previewNow(letter);
  }
  writeForm(form);
  for (const letter of LETTERS) {
    answers[letter].find(".name").textContent = title(state.sides[letter].method);
    answers[letter].paint(form.colours);
  }
  age();
  if (found.problems.length) notice(`Of the link, ${found.problems.join("; ")}.`);
}

/** Mostly the first objective, or mostly the last. */
function leaning(family, index) {
  const { objectives } = family;
  const most = objectives.at(index === 0 ? 0 : -1);
  const rest = objectives.length > 1 ? 0.2 / (objectives.length - 1) : 0;
  return Object.fromEntries(objectives.map((name) => [name, name === most ? 0.8 : rest]));
}

// -- what changes -------------------------------------------------------------------------------------------------

/** Write the settings to the address; while a dial moves, when it rests: browsers refuse too many writes. */
function rememberNow() {
  history.replaceState(null, "", `#${fragmentOf(state)}`);
}
const remember = debounced(rememberNow, 250);

/** Mark what is shown and was asked with other settings than there are now. */
function age() {
  for (const letter of LETTERS) runs.age(letter);
  grid.compare(shared());
}

/** What all cells of the grid have in common, in words. */
function shared() {
  const sampling = form.temperature === undefined ? "the family's sampling" : `temperature ${form.temperature}`;
  return `\u201c${form.prompt}\u201d, ${sampling}, seed ${form.seed ?? "new"}`;
}

function use(letter, weights) {
  state.sides[letter] = newSide(state.family, { preference: weights });
  sides[letter].show(state.sides[letter]);
  sideChanged(letter);
}

function sideChanged(letter) {
  state.sides[letter] = sides[letter].state;
  preview(letter);
  remember();
  runs.edited(letter);
  age();
}

function copySide(from) {
  const to = from === "a" ? "b" : "a";
  state.sides[to] = structuredClone(state.sides[from]);
  sides[to].show(state.sides[to]);
  sideChanged(to);
  confirmOn(sides[from].find(".copy-side"), "Copied");
}

const previewSoon = Object.fromEntries(LETTERS.map((letter) => [letter, debounced(() => previewNow(letter), 120)]));

function preview(letter) {
  previewSoon[letter]();
}

async function previewNow(letter) {
  previews[letter]?.abort();
  const controller = (previews[letter] = new AbortController());
  const { coefficients } = sides[letter];
  try {
    coefficients.show(await call("v1/coefficients", coefficientsBody(state, letter), controller.signal));
  } catch (error) {
    if (error.name !== "AbortError") coefficients.fail(error.message);
  }
}

// -- answers ------------------------------------------------------------------------------------------------------

function toggle(letter) {
  runs.toggle(letter);
}

function steer(letter) {
  runs.steer(letter);
}

function update() {
  byId("stop-both").disabled = !runs.any;
  compare(answers.a, answers.b);
}

function ready(yes) {
  byId("answer-both").disabled = !yes;
  byId("answer-grid").disabled = !yes || !state.family?.objectives.length;
  for (const letter of LETTERS) answers[letter].button.disabled = !yes;
}

/** Scroll to what is out of sight but for its edge: the answers that were asked for are to be seen. */
function intoView(element) {
  if (element.getBoundingClientRect().top > innerHeight - 160) element.scrollIntoView({ block: "start" });
}

function stopAll() {
  runs.stop();
  grid.stop();
}

// -- the rest of the page -----------------------------------------------------------------------------------------

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function askForKey(reason) {
  ready(false);
  byId("key-reason").textContent = `This server wants an API key: ${reason}.`;
  byId("key-form").hidden = false;
  byId("key").focus();
}

function showCode(letter) {
  try {
    code.show(letter, generateBody(state, letter, false));
  } catch (error) {
    notice(error.message);
  }
}

function wire() {
  byId("settings").append(sides.a.root, sides.b.root);
  byId("answer-list").append(answers.a.root, answers.b.root);
  if (matchMedia("(max-width: 46rem)").matches) for (const letter of LETTERS) sides[letter].root.open = false;
  writeForm(form);
  listenToForm(form, (name) => {
    if (name === "live" && form.live) for (const letter of LETTERS) runs.steer(letter);
    if (name === "colours") for (const letter of LETTERS) answers[letter].paint(form.colours);
    if (!state.family) return;
    remember();
    age();
  });
  for (const [name, text] of Object.entries(EXAMPLES)) {
    const chip = make("button", { type: "button", class: "chip", title: text }, name);
    chip.addEventListener("click", () => {
      byId("prompt").value = text;
      byId("prompt").dispatchEvent(new Event("input"));
    });
    byId("examples").append(chip);
  }
  byId("answer-grid").addEventListener("click", () => {
    byId("grid").hidden = false;
    intoView(byId("grid"));
    grid.answer(state.family, shared());
  });
  byId("run").addEventListener("submit", (event) => {
    event.preventDefault();
    for (const letter of LETTERS) runs.run(letter);
    intoView(byId("answer-list"));
  });
  byId("stop-both").addEventListener("click", stopAll);
  // A browser may keep a page that is left for later, its connections with it.
  addEventListener("pagehide", stopAll);
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !byId("answer-both").disabled) {
      byId("run").requestSubmit();
    }
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setApiKey(byId("key").value.trim());
    byId("key").value = "";
    load();
  });
  byId("family").addEventListener("change", () => {
    const names = [...byId("family").options].map((option) => option.value);
    history.replaceState(null, "", "#");
    choose(byId("family").value, names).catch((error) => notice(error.message));
  });
  byId("share").addEventListener("click", async () => {
    history.replaceState(null, "", `#${fragmentOf(state)}`);
    if (await copy(location.href)) confirmOn(byId("share"), "Copied");
  });
  addEventListener("hashchange", () => state.family && show(location.hash.slice(1)));
  const theme = document.documentElement.dataset.theme ?? "auto";
  for (const radio of document.querySelectorAll("input[name=theme]")) {
    radio.checked = radio.value === theme;
    radio.addEventListener("change", () => setTheme(radio.value));
  }
  update();
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("ladle-theme", theme);
  } catch {
    // It holds until the page is left, then.
  }
}

wire();
load();
