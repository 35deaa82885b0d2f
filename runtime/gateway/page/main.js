// The page: its tabs, its key, its theme, and the stream of events that all panes are drawn from.

import { announce, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { Follower, key, setKey } from "./net.js";
import { Store } from "./store.js";
import { TreePane } from "./tree.js";
import { TiersPane } from "./tiers.js";
import { RequestsPane } from "./requests.js";
import { WhyPane } from "./why.js";
import { ChatPane } from "./chat.js";
import { ModelsPane } from "./models.js";

const byId = (id) => document.getElementById(id);
const store = new Store();
const app = { store, show, showRequest, showWhy };
const panes = {
  tree: new TreePane(byId("tree"), app),
  tiers: new TiersPane(byId("tiers"), app),
  requests: new RequestsPane(byId("requests"), app),
  why: new WhyPane(byId("why"), app),
  chat: new ChatPane(byId("chat"), app),
  models: new ModelsPane(byId("models"), app),
};
const names = Object.keys(panes);
let shown = "";

// ── tabs ──

function show(name, { focus = false } = {}) {
  const wanted = names.includes(name) ? name : "tree";
  const isLater = shown !== "";
  for (const one of names) {
    const tab = byId(`tab-${one}`);
    const isShown = one === wanted;
    setAttribute(tab, "aria-selected", isShown);
    tab.tabIndex = isShown ? 0 : -1;
    byId(one).hidden = !isShown;
  }
  shown = wanted;
  if (location.hash !== `#/${wanted}`) history.replaceState(null, "", `#/${wanted}`);
  if (focus) byId(`tab-${wanted}`).focus();
  // Not at first: it would move where the Tab key begins.
  if (isLater) byId(`tab-${wanted}`).scrollIntoView({ block: "nearest", inline: "nearest" });
  panes[wanted].draw();
}

for (const name of names) {
  const tab = byId(`tab-${name}`);
  tab.addEventListener("click", () => show(name));
  tab.addEventListener("keydown", (event) => {
    const at = names.indexOf(name);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    show(names[(next + names.length) % names.length], { focus: true });
  });
}
window.addEventListener("hashchange", () => {
  const name = location.hash.slice(2);
  if (names.includes(name) && name !== shown) show(name);
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});

function showRequest(id) {
  panes.requests.select(id);
  show("requests", { focus: true });
}

function showWhy(id) {
  panes.why.select(id);
  show("why", { focus: true });
}

// ── drawing: once a frame at most ──

let isDue = false;
function changed() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    const running = store.running;
    byId("running-count").hidden = !running;
    setText(byId("running-count"), running);
    panes[shown].draw();
  });
}
store.onChange = changed;
setInterval(() => { if (store.running && !document.hidden) changed(); }, 250);

// ── the stream of events ──

const LINK = {
  waiting: "Connecting", live: "Live", lost: "Connection lost, trying again", refused: "No key", paused: "Paused while hidden",
};

function setLink(state, detail) {
  byId("link").dataset.state = state;
  setText(byId("link-text"), LINK[state]);
  if (state === "refused") openKey(detail);
}

const follower = new Follower({
  state(name, detail) {
    const before = byId("link").dataset.state;
    setLink(name, detail);
    if (name === "lost" && before === "live") announce("The connection is lost; it is opened again.");
    if (name === "live" && before === "lost") announce("The connection is back.");
  },
  hello(rights) {
    store.setRights(rights);
    setText(byId("key-name"), key() ? `Key: ${rights.key || "…"}` : "Key");
  },
  snapshot(found) {
    store.setSnapshot(found);
    byId("link").title = `The node is up for ${format.duration(found.tree.uptime_s)}`;
  },
  requests(found) { store.setRequests(found); },
});

let hiddenTimer = null;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (document.hidden) {
    hiddenTimer = setTimeout(() => { follower.stop(); setLink("paused"); }, 60000);
  } else if (byId("link").dataset.state === "paused") {
    setLink("waiting");
    follower.start();
  }
});

// ── key ──

const keyDialog = byId("key-dialog");

function openKey(problem = "") {
  byId("key-problem").textContent = key() || problem === "" ? problem : "";
  byId("key-input").value = "";
  if (!keyDialog.open) keyDialog.showModal();
  byId("key-input").focus();
}

function useKey(value) {
  setKey(value.trim());
  keyDialog.close();
  store.clear();
  follower.last = null;
  setLink("waiting");
  follower.start();
}

byId("key-button").addEventListener("click", () => openKey());
byId("key-cancel").addEventListener("click", () => keyDialog.close());
byId("key-forget").addEventListener("click", () => useKey(""));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key-input").value);
});

// ── theme ──

const THEMES = [["", "as the system"], ["light", "light"], ["dark", "dark"]];
const THEME = "llama-actors-theme";

function setTheme(value) {
  const [theme, words] = THEMES.find(([name]) => name === value) ?? THEMES[0];
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  byId("theme-button").setAttribute("aria-label", `Theme: ${words}`);
  byId("theme-button").title = `Theme: ${words}`;
  return theme;
}

byId("theme-button").addEventListener("click", () => {
  const at = THEMES.findIndex(([name]) => name === (document.documentElement.dataset.theme ?? ""));
  const theme = setTheme(THEMES[(at + 1) % THEMES.length][0]);
  localStorage.setItem(THEME, theme);
  announce(byId("theme-button").title);
});
setTheme(localStorage.getItem(THEME) ?? "");

show(location.hash.slice(2));
follower.start();
