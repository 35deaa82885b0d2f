// The models of the node: what they are, what they do; fetching, loading and unloading.

import { announce, confirmed, facts, h, notice, setText, sync } from "./dom.js";
import * as format from "./format.js";
import { call, eventsOf, json } from "./net.js";

const RESTING = new Set(["available", "asleep", "loading", "draining"]);

function gauge(name) {
  return h("div", { class: "gauge", role: "progressbar", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": 100, hidden: true }, h("i"));
}

function setShare(bar, share) {
  bar.hidden = false;
  bar.setAttribute("aria-valuenow", Math.round(100 * share));
  bar.firstElementChild.style.width = `${100 * share}%`;
}

function stay(known) {
  if (!known) return null;
  if (known.is_pinned) return "pinned";
  return known.expires_at ? `${Math.max(0, Math.round(known.expires_at - Date.now() / 1000))} s more` : null;
}

export class ModelsPane {
  constructor(root, app) {
    this.app = app;
    this.summary = h("p", { class: "soft" });
    this.cards = h("div", { class: "grid" });
    this.empty = h("div");
    this.problem = h("p", { class: "problem", role: "alert" });
    this.id = h("input", { id: "load-id", required: true, autocomplete: "off", spellcheck: "false", placeholder: "small" });
    this.path = h("input", { id: "load-path", required: true, autocomplete: "off", spellcheck: "false", placeholder: "/models/small.gguf" });
    this.options = h("textarea", { id: "load-options", class: "code", rows: 2, spellcheck: "false", placeholder: "{\"n_ctx\": 8192}" });
    this.button = h("button", { type: "submit", class: "primary" }, "Load");
    this.progress = gauge("Loading");
    const field = (id, text, control) => h("div", { class: "field" }, h("label", { for: id }, text), control);
    this.form = h("form", { class: "card pad", submit: (event) => { event.preventDefault(); this.load(); } },
      h("div", { class: "title-row" }, h("h3", null, "Load a file of this machine")), this.problem,
      field("load-id", "Id", this.id), field("load-path", "Path of the GGUF file", this.path), field("load-options", "Options, as JSON", this.options), this.progress, this.button);
    this.name = h("input", { id: "pull-name", required: true, autocomplete: "off", spellcheck: "false", placeholder: "org/repo:Q4_K_M" });
    this.pullProblem = h("p", { class: "problem", role: "alert" });
    this.pullProgress = gauge("Fetching");
    this.pullButton = h("button", { type: "submit" }, "Fetch");
    this.pullForm = h("form", { class: "card pad", submit: (event) => { event.preventDefault(); this.pull(); } },
      h("div", { class: "title-row" }, h("h3", null, "Fetch a model of a hub")), this.pullProblem,
      field("pull-name", "Model of the hub", this.name), this.pullProgress, this.pullButton);
    this.forms = h("div", { class: "forms" }, this.form, this.pullForm);
    root.append(h("div", { class: "head" }, h("h2", null, "Models"), this.summary), h("div", { class: "models-layout" }, h("div", null, this.empty, this.cards), this.forms));
  }

  draw() {
    const { store } = this.app;
    const found = store.snapshot;
    this.cards.hidden = this.forms.hidden = !found;
    this.empty.replaceChildren();
    if (!found) {
      setText(this.summary, "");
      this.empty.append(store.rights && !store.isAdmin
        ? notice("Only for administrators", "This key may use models; it may not load or unload them.")
        : notice("Waiting for the node", "Its models appear here once a second."));
      return;
    }
    const loaded = new Set(found.models.map((one) => one.id));
    const known = new Map((found.known ?? []).map((one) => [one.model, one]));
    const others = [...known.values()].filter((one) => !loaded.has(one.model)).map((one) => ({
      id: one.model, state: one.state, path: one.path, memory_bytes: one.memory_bytes, model_bytes: one.file_bytes, notes: [one.failure], isOut: true,
    }));
    const models = [...found.models.map((one) => ({ ...one, kept: known.get(one.id) })), ...others];
    setText(this.summary, `${loaded.size} loaded${others.length ? `, ${others.length} more` : ""}`);
    if (!models.length) this.empty.append(notice("No model is loaded", "Load a file below."));
    sync(this.cards, models, (one) => one.id, (one) => this.make(one), (card, one) => this.update(card, one));
  }

  make(one) {
    const card = h("article", { class: "card pad" },
      h("div", { class: "title-row" }, h("span", { class: "dot", "aria-hidden": "true" }), h("h3", null, one.id), h("span", { class: "badge end" })),
      h("div"), h("div", { class: "actions" },
        h("button", { type: "button", class: "quiet small", click: () => this.app.show("chat", { focus: true }) }, "Chat"),
        h("button", { type: "button", class: "small", "aria-label": `Load ${one.id}`, click: () => this.wake(one.id) }, "Load"),
        h("button", { type: "button", class: "small kill", "aria-label": `Unload ${one.id}`, click: () => this.unload(one.id) }, "Unload")));
    return card;
  }

  update(card, one) {
    const [head, rest, actions] = card.children;
    const [dot, , badge] = head.children;
    const [chat, load, unload] = actions.children;
    chat.hidden = unload.hidden = Boolean(one.isOut);
    load.hidden = !one.isOut;
    dot.dataset.state = one.isOut ? "out" : one.state ?? "down";
    const phase = one.state === "up" ? one.phase ?? "up" : one.state;
    setText(badge, phase === "loading" && one.progress !== undefined ? `loading, ${format.percent(one.progress)}` : phase);
    const isGood = one.state === "up" || RESTING.has(one.state);
    badge.dataset.tone = isGood ? (one.isOut ? "" : phase === "idle" ? "good" : "accent") : "bad";
    rest.replaceChildren(facts([
      [one.isOut ? "Memory, expected" : "Memory", one.memory_bytes ? format.bytes(one.memory_bytes) : null], ["Weights", one.model_bytes ? format.bytes(one.model_bytes) : null],
      ["Parameters", one.n_params ? format.compact(one.n_params) : null], ["Context", one.n_ctx ? format.tokens(one.n_ctx) : null],
      ["Running, waiting", `${one.running ?? 0}, ${one.waiting ?? 0}`], ["Requests answered", one.requests_done === undefined ? null : format.count(one.requests_done)],
      ["Tokens generated", one.tokens_generated === undefined ? null : format.count(one.tokens_generated)],
      ["Stays", stay(one.kept)], ["Incarnation", one.incarnation], ["Architecture", one.architecture], ["Notes", (one.notes ?? []).join(" ")], ["File", one.path],
    ]));
  }

  async load() {
    this.problem.textContent = "";
    let options;
    try {
      options = this.options.value.trim() ? JSON.parse(this.options.value) : undefined;
    } catch (error) {
      this.problem.textContent = `Options are no JSON: ${error.message}`;
      return;
    }
    this.button.disabled = true;
    try {
      const model = this.id.value.trim();
      await this.work("/llama/v1/models/load", { model, path: this.path.value.trim(), options, stream: true }, this.progress);
      announce(`${model} is loaded.`);
      this.form.reset();
    } catch (error) {
      this.problem.textContent = error.message;
    }
    this.button.disabled = false;
  }

  // Fetch a model, and fill in the form that loads it.
  async pull() {
    this.pullProblem.textContent = "";
    this.pullButton.disabled = true;
    try {
      const found = await this.work("/llama/v1/models/pull", { model: this.name.value.trim(), stream: true }, this.pullProgress);
      this.id.value = found.id;
      this.path.value = found.path;
      announce(`${found.model} is there; load it now.`);
      this.pullForm.reset();
      this.button.focus();
    } catch (error) {
      this.pullProblem.textContent = error.message;
    }
    this.pullButton.disabled = false;
  }

  // The result of work whose share is shown meanwhile.
  async work(path, body, bar) {
    setShare(bar, 0);
    try {
      const answer = await call("POST", path, body);
      for await (const event of eventsOf(answer)) {
        const data = JSON.parse(event.data);
        if (event.name === "progress") setShare(bar, data.share);
        if (event.name === "error") throw new Error((data.error ?? data).message);
        if (event.name === "result") return data;
      }
      throw new Error("The gateway has ended the connection; try again.");
    } finally {
      bar.hidden = true;
    }
  }

  // A model that is known is loaded as its preset says: as by its first use.
  async wake(id) {
    this.problem.textContent = "";
    announce(`${id} is being loaded.`);
    try {
      await json("POST", "/api/generate", { model: id, stream: false });
      announce(`${id} is loaded.`);
    } catch (error) {
      this.problem.textContent = error.message;
    }
  }

  async unload(id) {
    if (!(await confirmed(`Unload ${id}?`, "Its running requests have some seconds; later ones are refused. What it has stored stays for the next time.", "Unload"))) return;
    this.problem.textContent = "";
    try {
      await json("POST", "/llama/v1/models/unload", { model: id });
      announce(`${id} is unloaded.`);
    } catch (error) {
      this.problem.textContent = error.message;
    }
  }
}
