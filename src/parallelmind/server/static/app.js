// The page: one shared text, its branches, and the runs that answer them.

import { getJson, HealthWatch, onKeyNeeded } from "./api.js";
import { BranchCard } from "./branch.js";
import { askKey, dropNotice, notice, setUpDialogs, setUpTheme, showShare } from "./dialogs.js";
import { cleanDraft, emptyDraft, EXAMPLE, fromFragment, loadDraft, storeDraft } from "./draft.js";
import { TokenGrid } from "./grid.js";
import { Run } from "./run.js";
import { Settings } from "./settings.js";
import { setUpShortcuts } from "./shortcuts.js";

const STORE_AFTER_MS = 300;
const SAID_OF_AN_ANSWER = 200;
const SERVER_STATES = {
  ready: "ready", loading: "loading the model…", draining: "shutting down", gone: "unreachable, trying again…",
  failed: "failed", unknown: "connecting…",
};

const byId = (id) => document.getElementById(id);
const mainText = byId("main-text");
const cards = [];
const runs = new Set();
let lastRun = null;
let storing = null;
let progressDrawn = true;

const settings = new Settings(changed);
const grid = new TokenGrid(() => ({
  main: mainText.value,
  branches: cards.map((card) => card.prompt + card.output.text),
  ...(settings.visibility && { visibility: settings.visibility }),
  ...(settings.adapter && { adapter: settings.adapter }),
}));
const health = new HealthWatch(showServer);

function changed() {
  for (const card of cards) card.inherit(settings.sampling);
  grid.outdate();
  clearTimeout(storing);
  storing = setTimeout(store, STORE_AFTER_MS);
}

function store() {
  if (!storeDraft(draft())) notice("storage", "This browser does not keep your texts: they are gone when you leave.");
}

function draft() {
  return {
    main: mainText.value,
    branches: cards.map((card) => ({ prompt: card.prompt, sampling: card.sampling, adapter: card.adapter })),
    ...settings.draft,
  };
}

/** Replaces everything on the page; what runs is stopped. */
function show(given) {
  stopAll();
  for (const card of cards.splice(0)) card.element.remove();
  mainText.value = given.main;
  settings.draft = given;
  given.branches.forEach(addBranch);
  renumber();
  changed();
}

function addBranch({ prompt, sampling, adapter }) {
  const card = new BranchCard(byId("branch-template"), {
    run: (each) => run([each]),
    stop: (each) => each.run?.stop(each),
    remove: removeBranch,
    changed,
  });
  card.prompt = prompt;
  card.sampling = sampling;
  card.offer(settings.adapters);
  card.adapter = adapter;
  cards.push(card);
  byId("branches").append(card.element);
  return card;
}

function addEmptyBranch() {
  const card = addBranch({ prompt: "", sampling: {}, adapter: null });
  renumber();
  changed();
  card.focus();
}

function removeBranch(card) {
  card.run?.stop(card);
  const place = cards.indexOf(card);
  cards.splice(place, 1);
  card.element.remove();
  renumber();
  changed();
  (cards[Math.min(place, cards.length - 1)] ?? { focus: () => byId("add").focus() }).focus();
}

function renumber() {
  cards.forEach((card, index) => card.number(index + 1));
  byId("empty").hidden = cards.length > 0 || mainText.value !== "";
  showTotals();
}

async function run(chosen) {
  const idle = chosen.filter((card) => !card.busy);
  if (!idle.length) return;
  const wrong = [settings, ...idle].find((part) => !part.valid);
  if (wrong) {
    wrong.reportInvalid();
    return;
  }
  const body = settings.request(mainText.value, idle);
  const started = new Run(idle, { progress: showTotalsSoon, finished });
  runs.add(started);
  lastRun = started;
  showTotals();
  const lost = await started.send(body);
  runs.delete(started);
  showTotals();
  grid.outdate();
  if (lost) health.check();
}

function runAll() {
  if (!cards.length) addEmptyBranch();
  else run(cards);
}

function stopAll() {
  for (const each of runs) each.stop();
}

function finished(card) {
  const said = card.output.text.trim().slice(0, SAID_OF_AN_ANSWER);
  const state = card.element.querySelector(".state").textContent;
  byId("announcer").textContent = `Branch ${card.index + 1} ${state}: ${said}`;
}

function showTotalsSoon() {
  if (!progressDrawn) return;
  progressDrawn = false;
  requestAnimationFrame(() => {
    progressDrawn = true;
    showTotals();
  });
}

function showTotals() {
  byId("stop-all").disabled = runs.size === 0;
  byId("run-all").disabled = cards.length > 0 && cards.every((card) => card.busy);
  byId("totals").hidden = lastRun === null;
  if (lastRun === null) return;
  const seconds = (lastRun.last - lastRun.sent) / 1000;
  byId("total-tokens").textContent = lastRun.tokens;
  byId("total-speed").textContent = lastRun.tokens ? Math.round(lastRun.tokens / Math.max(seconds, 0.001)) : "–";
  byId("total-first").textContent = lastRun.firstMs === null ? "–" : `${Math.round(lastRun.firstMs)} ms`;
  const { mainTokens, cachedTokens } = lastRun;
  byId("total-cached").textContent = cachedTokens === null ? "–" : `${cachedTokens} of ${mainTokens ?? "?"}`;
  byId("main-meta").textContent = mainTokens === null ? "" : `${mainTokens} tokens`;
}

async function showServer(state) {
  const chip = byId("server");
  chip.dataset.state = state;
  chip.querySelector("span").textContent = SERVER_STATES[state] ?? state;
  if (state === "gone") notice("gone", "The server cannot be reached. Your texts are kept, and the page tries again.");
  if (state !== "ready") return;
  dropNotice("gone");
  try {
    const [info, presets] = await Promise.all([getJson("v1/info"), getJson("v1/presets")]);
    byId("model").textContent = info.model;
    byId("model").hidden = false;
    settings.offer(info, presets);
    for (const card of cards) {
      card.offer(settings.adapters);
      card.inherit(settings.sampling);
    }
    dropNotice("info");
  } catch (error) {
    notice("info", `What the server offers could not be read: ${error.message}`, {
      label: "Try again",
      run: () => showServer("ready"),
    });
  }
}

async function openLink() {
  if (!location.hash.startsWith("#s=")) return false;
  const fragment = location.hash;
  history.replaceState(null, "", location.pathname + location.search);
  try {
    const shared = await fromFragment(fragment);
    const own = loadDraft();
    show(shared);
    const restore = { label: "Back to my own texts", run: () => show(own) };
    notice("link", "Opened from a link. Nothing runs until you say so.", own && hasText(own) ? restore : null);
    return true;
  } catch (error) {
    notice("link", `The link cannot be read (${error.message}); ask for it again.`);
    return false;
  }
}

function hasText(given) {
  return given.main !== "" || given.branches.length > 0;
}

function setUp() {
  setUpTheme();
  setUpDialogs();
  onKeyNeeded(askKey);
  byId("run-all").addEventListener("click", runAll);
  byId("stop-all").addEventListener("click", stopAll);
  byId("add").addEventListener("click", addEmptyBranch);
  byId("first").addEventListener("click", addEmptyBranch);
  byId("example").addEventListener("click", () => {
    show(cleanDraft(EXAMPLE));
    byId("run-all").focus();
  });
  byId("share").addEventListener("click", () => showShare(draft()));
  mainText.addEventListener("input", () => {
    byId("empty").hidden = cards.length > 0 || mainText.value !== "";
    changed();
  });
  addEventListener("pagehide", store);
  addEventListener("hashchange", openLink);
  setUpShortcuts({
    runAll,
    run: (card) => run([card]),
    stopAll,
    add: addEmptyBranch,
    remove: removeBranch,
    cards: () => cards,
    main: mainText,
  });
}

setUp();
if (!(await openLink())) show(loadDraft() ?? emptyDraft());
document.documentElement.dataset.set = "up";
health.check();
