// One request: its prompt as a strip of parts, where each came from, and why no more was warm.

import { facts, h, notice, svg } from "./dom.js";
import * as format from "./format.js";
import { Failed, json } from "./net.js";

const SOURCES = { live: "the context", ram: "RAM", ram_file: "RAM files", disk: "disk" };
const REASONS = {
  empty_cache: "Nothing was stored yet.",
  no_such_namespace: "Nothing was stored for this model, its settings and this key.",
  diverges: "From there on it differs from what is stored.",
  not_stored: "Nothing was stored beyond that place.",
  being_written: "What continues it was just being written.",
  not_cuttable: "More is stored, but this model cannot use a part of it.",
  cache_off: "This node keeps no rows.", cache_down: "The index was being started again.", cache_timeout: "The index did not answer in time.",
  parent_unknown: "No stored row ends with the key that was given.",
  model_cannot_be_cut: "This model cannot use a part of what is stored.",
  no_checkpoint_beyond: "Rows are stored, but no state of the model behind that place.",
  row_rejected: "A stored row failed its checks.", not_restored: "The stored rows were refused.",
  restore_would_be_slower: "Computing the rest was faster than reading it.",
};

export class WhyPane {
  constructor(root, app) {
    this.app = app;
    this.wanted = null;
    this.chosen = null;
    this.answers = new Map(); // what was fetched, by ids of requests
    this.pick = h("select", { id: "why-pick", change: () => { this.wanted = this.pick.value; this.part = null; this.draw(); } });
    this.out = h("div");
    root.append(
      h("div", { class: "head" }, h("h2", null, "Why"), h("p", { class: "soft" }, "Where a prompt came from, and what it cost that no more of it was warm.")),
      h("div", { class: "why-pick" }, h("div", null, h("label", { for: "why-pick" }, "Request"), this.pick)), this.out);
  }

  select(id) {
    this.wanted = id;
    this.part = null;
  }

  draw() {
    const { store } = this.app;
    const known = store.latest().filter((one) => one.outcome !== null && one.replies.some((reply) => reply.hit !== null)).slice(0, 200);
    const stamp = known.map((one) => one.id).join();
    if (stamp !== this.stamp && document.activeElement !== this.pick) {
      this.stamp = stamp;
      this.pick.replaceChildren(...known.map((one) => h("option", { value: one.id }, labelOf(one))));
    }
    const one = known.find((request) => request.id === this.wanted) ?? (this.wanted ? store.requests.get(this.wanted) : known[0]);
    this.pick.disabled = !known.length;
    if (!one?.replies.some((reply) => reply.hit !== null)) {
      this.drawn = null;
      this.out.replaceChildren(one ? notice("Not known", "This request has no finished reply, so there is nothing to explain.")
        : notice("No replies yet", "Once a reply has ended, its prompt is explained here."));
      return;
    }
    this.wanted = one.id;
    this.pick.value = one.id;
    if (store.rights?.prompts && !this.answers.has(one.id)) this.fetch(one);
    const answer = this.answers.get(one.id);
    const drawn = `${one.id} ${one.seen} ${answer ? answer.state : ""} ${this.part}`;
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.explain(one, answer);
  }

  async fetch(one) {
    this.answers.set(one.id, { state: "asked" });
    let found;
    try {
      found = { state: "found", ...(await json("GET", `/llama/v1/requests/${encodeURIComponent(one.id)}/why`)) };
    } catch (error) {
      found = { state: "missing", text: error instanceof Failed ? error.message : "The gateway did not answer." };
    }
    this.answers.set(one.id, found);
    if (this.answers.size > 64) this.answers.delete(this.answers.keys().next().value);
    this.draw();
  }

  explain(one, answer) {
    const reply = one.replies.find((found) => found.hit !== null);
    const n = Math.max(reply.prompt_tokens, 1);
    const parts = partsOf(reply, answer);
    const at = reply.diverged_token ?? reply.miss_at;
    const list = parts.length > 2 || answer?.state === "found" ? this.list(parts, reply) : null;
    const mark = h("div", { class: "mark-row" });
    if (at !== null && at !== undefined && at < n) {
      const label = h("span", null, reply.diverged ? `differs: ${reply.diverged}` : "not warm from here");
      const share = (100 * at) / n;
      if (share > 60) label.style.right = `${100 - share}%`;
      else label.style.left = `${share}%`;
      mark.append(label);
    }
    const chosen = parts[this.part] ?? null;
    const right = [h("div", { class: "card pad" }, h("div", { class: "title-row" }, h("h3", null, "Numbers")), facts([
      ["Prompt", format.tokens(reply.prompt_tokens)], ["Warm", format.tokens(reply.cached_tokens)],
      ["Computed", format.tokens(reply.prompt_tokens - reply.cached_tokens)],
      ["Lost to the difference", reply.lost_tokens ? format.tokens(reply.lost_tokens) : null],
      ["Lookup", format.ms(reply.lookup_ms)], ["Restore", format.ms(reply.restore_ms)], ["Prefill", format.ms(reply.prefill_ms)],
      ["Hit", reply.hit], ["Reason", reply.miss_reason], ["Rules used", one.rules.join(", ")],
    ]))];
    this.out.replaceChildren(h("div", { class: "why-columns" },
      h("div", null, h("div", { class: "card pad" },
        verdict(one, reply, answer), this.strip(parts, reply, n), mark, legend(reply), this.texts(answer), list, this.partBox(chosen))),
      h("div", null, right)));
    if (this.focusPart !== null && this.focusPart !== undefined) {
      list?.children[this.focusPart]?.firstElementChild.focus();
      this.focusPart = null;
    }
  }

  choose(number) {
    this.part = this.part === number ? null : number;
    this.focusPart = number;
    this.draw();
  }

  // A picture for the eye and the mouse; the list below it has the same as text.
  strip(parts, reply, n) {
    const picture = svg("svg", { class: "strip", viewBox: "0 0 1000 58", preserveAspectRatio: "none", role: "img",
      "aria-label": `The prompt: ${format.percent(reply.cached_tokens / n)} warm, the rest computed` });
    parts.forEach((part, number) => {
      const from = (1000 * part.start) / n;
      const to = Math.max(from + 1.5, (1000 * part.end) / n - 2);
      const warm = from + (to - from) * warmOf(part, reply).share;
      const box = (x, width, kind) => svg("rect", { x: x.toFixed(2), y: 0, width: Math.max(0, width).toFixed(2), height: 58, "data-kind": kind });
      picture.append(svg("g", { click: () => this.choose(number) }, svg("title", null, wordsOf(part, reply)),
        box(from, warm - from, sourceOf(reply)), box(warm, to - warm, "computed"),
        this.part === number ? svg("rect", { x: from.toFixed(2), y: 52, width: (to - from).toFixed(2), height: 6, class: "chosen" }) : null));
    });
    return picture;
  }

  list(parts, reply) {
    return h("ol", { class: "parts", "aria-label": "Parts of the prompt" }, parts.map((part, number) => {
      const warm = warmOf(part, reply);
      const source = warm.share === 1 ? sourceText(reply) : warm.share ? `${format.percent(warm.share)} ${sourceText(reply)}` : "computed";
      return h("li", null, h("button", { type: "button", "aria-pressed": String(this.part === number), click: () => this.choose(number) },
        h("span", { class: "swatch", "data-kind": warm.share > 0.5 ? sourceOf(reply) : "computed", "aria-hidden": "true" }),
        h("span", { class: "name" }, nameOf(part)), h("span", { class: "soft" }, source), h("span", { class: "number" }, format.tokens(part.end - part.start))));
    }));
  }

  texts(answer) {
    const { rights } = this.app.store;
    if (!rights?.prompts) {
      const words = rights?.admin ? ["Parts and texts are shown with ", h("code", null, "gateway.prompts = true"), ", which keeps the last prompts in memory."]
        : ["Parts and texts are shown to administrators."];
      return h("p", { class: "soft" }, ...words);
    }
    if (answer?.state === "missing") return h("p", { class: "soft" }, answer.text);
    if (answer?.state !== "found" || !answer.around) return null;
    return h("div", null, h("h3", null, "Where it differs"), h("p", { class: "around" }, answer.around.before, h("mark", null, answer.around.after)));
  }

  partBox(part) {
    if (!part) return null;
    return h("div", { class: "actions" }, h("div", null, h("h3", null, nameOf(part)), h("p", { class: "soft number" }, `Tokens ${format.count(part.start)} to ${format.count(part.end)}`),
      part.text ? h("p", { class: "part-text", tabindex: 0 }, part.text) : null));
  }
}

function partsOf(reply, answer) {
  if (answer?.state === "found" && answer.parts.every((part) => part.start_token !== null && part.end_token !== null)) {
    return answer.parts.map((part) => ({ ...part, start: part.start_token, end: part.end_token }));
  }
  const end = reply.cached_tokens;
  return [{ name: "warm", start: 0, end }, { name: "computed", start: end, end: reply.prompt_tokens }].filter((part) => part.end > part.start);
}

function sourceOf(reply) { return reply.source in SOURCES ? reply.source : "live"; }

function sourceText(reply) { return `from ${SOURCES[sourceOf(reply)]}`; }

// How much of a part was warm.
function warmOf(part, reply) {
  const length = part.end - part.start;
  const n = Math.max(0, Math.min(reply.cached_tokens, part.end) - part.start);
  return { n, share: length > 0 ? n / length : 0 };
}

function wordsOf(part, reply) {
  const length = part.end - part.start;
  const { n } = warmOf(part, reply);
  const where = n >= length && length ? `all ${sourceText(reply)}` : n ? `${n} ${sourceText(reply)}` : "computed";
  return `${nameOf(part)}: ${format.tokens(length)}, ${where}`;
}

function nameOf(part) {
  const words = { warm: "Warm", computed: "Computed", template: "Template", reply: "What begins the reply", tools: "Tools", documents: "Documents", prompt: "Prompt" };
  return part.role ? `${part.role} (${part.name})` : words[part.name] ?? part.name;
}

function verdict(one, reply, answer) {
  const rest = reply.prompt_tokens - reply.cached_tokens;
  const source = SOURCES[reply.source];
  const words = [];
  if (reply.cached_tokens) words.push(h("strong", null, `${format.percent(reply.cached_tokens / Math.max(reply.prompt_tokens, 1))} of the prompt was warm`), source ? `, read from ${source}` : "", ". ");
  else words.push(h("strong", null, "None of the prompt was warm"), ". ");
  if (reply.diverged) {
    words.push(h("code", null, reply.diverged), ` differs from an earlier request`);
    words.push(reply.lost_tokens ? `; ${format.tokens(reply.lost_tokens)} that could have been warm were computed` : "", `. `);
  } else if (reply.miss_reason && rest > 0) words.push(`${REASONS[reply.miss_reason] ?? `Reason: ${reply.miss_reason}.`} `);
  words.push(rest > 0 ? `Computing ${format.tokens(rest)} took ${format.ms(reply.prefill_ms)}.` : "Nothing had to be computed.");
  const rules = answer?.state === "found" ? answer.saving_rules : [];
  if (rules.length) words.push(" The canonical rule ", h("code", null, rules[0]), " would have kept more of it the same.");
  return h("p", { class: "verdict" }, ...words);
}

function legend(reply) {
  const source = reply.source in SOURCES ? reply.source : null;
  const item = (kind, text) => h("li", null, h("span", { class: "swatch", "data-kind": kind, "aria-hidden": "true" }), text);
  return h("ul", { class: "legend" }, source && reply.cached_tokens ? item(source, `From ${SOURCES[source]}`) : null, item("computed", "Computed"));
}

function labelOf(one) {
  const reply = one.replies.find((found) => found.hit !== null);
  const share = format.percent(reply.cached_tokens / Math.max(reply.prompt_tokens, 1));
  return `${format.clock(one.at)} · ${one.model ?? one.route} · ${format.tokens(reply.prompt_tokens)}, ${share} warm${one.key ? ` · ${one.key}` : ""}`;
}
