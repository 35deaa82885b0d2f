// The models of the node: what they are, what they do; loading and unloading.

import { announce, confirmed, facts, h, notice, setText, sync } from "./dom.js";
import * as format from "./format.js";
import { call, eventsOf, json } from "./net.js";

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
    this.share = h("i");
    this.progress = h("div", { class: "gauge", role: "progressbar", "aria-label": "Loading", "aria-valuemin": 0, "aria-valuemax": 100, hidden: true }, this.share);
    const field = (id, text, control) => h("div", { class: "field" }, h("label", { for: id }, text), control);
    this.form = h("form", { class: "card pad", submit: (event) => { event.preventDefault(); this.load(); } },
      h("div", { class: "title-row" }, h("h3", null, "Load a file of this machine")), this.problem,
      field("load-id", "Id", this.id), field("load-path", "Path of the GGUF file", this.path), field("load-options", "Options, as JSON", this.options), this.progress, this.button);
    root.append(h("div", { class: "head" }, h("h2", null, "Models"), this.summary), h("div", { class: "models-layout" }, h("div", null, this.empty, this.cards), this.form));
  }

  draw() {
    const { store } = this.app;
    const found = store.snapshot;
    this.cards.hidden = this.form.hidden = !found;
    this.empty.replaceChildren();
    if (!found) {
      setText(this.summary, "");
      this.empty.append(store.rights && !store.isAdmin
        ? notice("Only for administrators", "This key may use models; it may not load or unload them.")
        : notice("Waiting for the node", "Its models appear here once a second."));
      return;
    }
    const models = found.models;
    setText(this.summary, `${models.length} ${models.length === 1 ? "model" : "models"}`);
    if (!models.length) this.empty.append(notice("No model is loaded", "Load a file below."));
    sync(this.cards, models, (one) => one.id, (one) => this.make(one), (card, one) => this.update(card, one));
  }

  make(one) {
    const card = h("article", { class: "card pad" },
      h("div", { class: "title-row" }, h("span", { class: "dot", "aria-hidden": "true" }), h("h3", null, one.id), h("span", { class: "badge end" })),
      h("div"), h("div", { class: "actions" },
        h("button", { type: "button", class: "quiet small", click: () => this.app.show("chat", { focus: true }) }, "Chat"),
        h("button", { type: "button", class: "small kill", "aria-label": `Unload ${one.id}`, click: () => this.unload(one.id) }, "Unload")));
    return card;
  }

  update(card, one) {
    const [head, rest] = card.children;
    const [dot, , badge] = head.children;
    dot.dataset.state = one.state ?? "down";
    const phase = one.state === "up" ? one.phase ?? "up" : one.state;
    setText(badge, phase === "loading" && one.progress !== undefined ? `loading, ${format.percent(one.progress)}` : phase);
    badge.dataset.tone = one.state === "up" ? (phase === "idle" ? "good" : "accent") : "bad";
    rest.replaceChildren(facts([
      ["Memory", format.bytes(one.memory_bytes)], ["Weights", one.model_bytes ? format.bytes(one.model_bytes) : null],
      ["Parameters", one.n_params ? format.compact(one.n_params) : null], ["Context", one.n_ctx ? format.tokens(one.n_ctx) : null],
      ["Running, waiting", `${one.running ?? 0}, ${one.waiting ?? 0}`], ["Requests answered", one.requests_done === undefined ? null : format.count(one.requests_done)],
      ["Tokens generated", one.tokens_generated === undefined ? null : format.count(one.tokens_generated)],
      ["Incarnation", one.incarnation], ["Architecture", one.architecture], ["Notes", (one.notes ?? []).join(" ")], ["File", one.path],
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
    this.setShare(0);
    try {
      const model = this.id.value.trim();
      const answer = await call("POST", "/llama/v1/models/load", { model, path: this.path.value.trim(), options, stream: true });
      for await (const event of eventsOf(answer)) {
        const data = JSON.parse(event.data);
        if (event.name === "progress") this.setShare(data.share);
        if (event.name === "error") throw new Error((data.error ?? data).message);
      }
      announce(`${model} is loaded.`);
      this.form.reset();
    } catch (error) {
      this.problem.textContent = error.message;
    }
    this.button.disabled = false;
    this.progress.hidden = true;
  }

  setShare(share) {
    this.progress.hidden = false;
    this.progress.setAttribute("aria-valuenow", Math.round(100 * share));
    this.share.style.width = `${100 * share}%`;
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
