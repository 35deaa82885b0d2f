// Where rows are kept: bytes of budget, rows, hits, restores, state.

import { facts, h, notice, setText, sync } from "./dom.js";
import * as format from "./format.js";

const WORDS = { live: "Live context", ram: "RAM", ram_file: "RAM files", disk: "Disk" };

export class TiersPane {
  constructor(root, app) {
    this.app = app;
    this.summary = h("p", { class: "soft" });
    this.tiles = h("div", { class: "tiles" });
    this.cards = h("div", { class: "grid" });
    this.empty = h("div");
    root.append(h("div", { class: "head" }, h("h2", null, "Tiers"), this.summary), this.empty, this.tiles, this.cards);
  }

  draw() {
    const { store } = this.app;
    const found = store.snapshot;
    this.tiles.hidden = this.cards.hidden = !found;
    this.empty.replaceChildren();
    if (!found) {
      setText(this.summary, "");
      this.empty.append(store.rights && !store.isAdmin
        ? notice("Only for administrators", "This key may not see the cache of the node.")
        : notice("Waiting for the node", "Its tiers appear here once a second."));
      return;
    }
    const { cache, tiers, restored, writer } = found.cache;
    const hits = (cache.hits_exact ?? 0) + (cache.hits_partial ?? 0) + (cache.hits_resume ?? 0);
    const all = hits + (cache.misses ?? 0);
    setText(this.summary, "Prompts that were read once, and where they are warm. Counts since the last start.");
    const sums = Object.values(restored);
    const tiles = [
      ["Hit rate", format.percent(all ? hits / all : null)],
      ["Hits, misses", `${format.compact(hits)}, ${format.compact(cache.misses ?? 0)}`],
      ["Tokens not computed again", format.compact(sums.reduce((sum, one) => sum + one.tokens, 0))],
      ["Mean lookup", cache.lookups ? format.ms(cache.lookup_ms_total / cache.lookups) : "–"],
      ["Evictions", format.compact(cache.evictions ?? 0)],
      ["Waiting to be written", format.compact(writer?.queued ?? 0)],
    ];
    sync(this.tiles, tiles, ([name]) => name,
      ([name]) => h("div", { class: "card tile" }, h("p", { class: "value" }), h("p", { class: "name" }, name)),
      (tile, [, value]) => setText(tile.firstElementChild, value));
    const cards = [
      ...found.models.map((one) => liveCard(one, found.cache.models[one.id])),
      ...Object.entries(tiers).map(([name, one]) => tierCard(name, one, restored[name], writer?.tiers?.[name])),
    ];
    sync(this.cards, cards, (one) => one.key,
      (one) => h("article", { class: "card pad" },
        h("div", { class: "title-row" }, h("span", { class: "swatch", "data-kind": one.kind, "aria-hidden": "true" }), h("h3", null, one.title), h("span", { class: "badge end" })),
        h("div", { class: "gauge", role: "meter", "aria-label": `${one.title}: used`, "aria-valuemin": 0, "aria-valuemax": 100 }, h("i", { "data-kind": one.kind })),
        h("p", { class: "soft number" }), h("div")),
      (card, one) => {
        const [head, gauge, line, rest] = card.children;
        const badge = head.lastElementChild;
        setText(badge, one.state);
        badge.dataset.tone = one.tone;
        const share = Math.min(100, 100 * one.share);
        gauge.setAttribute("aria-valuenow", Math.round(share));
        gauge.firstElementChild.style.width = `${share}%`;
        setText(line, one.line);
        rest.replaceChildren(facts(one.facts));
      });
  }
}

function liveCard(model, cache) {
  const live = cache?.restored?.live;
  return {
    key: `live-${model.id}`, kind: "live", title: `${WORDS.live}: ${model.id}`,
    state: model.state ?? "–", tone: model.state === "up" ? "good" : "bad",
    share: model.n_ctx ? (model.idle_cells ?? 0) / model.n_ctx : 0,
    line: `${format.count(model.idle_cells ?? 0)} of ${format.count(model.n_ctx)} cells are kept warm`,
    facts: [
      ["Idle sequences", format.count(model.idle_sequences ?? 0)],
      ["Hits", live ? `${format.count(live.requests)} requests, ${format.tokens(live.tokens)}` : "none"],
      ["Prefill speed", model.prefill_tokens_per_s ? `${format.count(model.prefill_tokens_per_s)} tokens/s` : null],
      ["Bytes of a token", model.kv_bytes_per_token ? format.bytes(model.kv_bytes_per_token) : null],
    ],
  };
}

function tierCard(name, tier, restored, written) {
  const state = tier.state ?? "open";
  const share = tier.budget_bytes ? tier.used_bytes / tier.budget_bytes : 0;
  return {
    key: name, kind: name in WORDS ? name : "disk", title: WORDS[name] ?? name,
    state, tone: state === "open" && !tier.trouble ? "good" : "bad", share,
    line: `${format.bytes(tier.used_bytes)} of ${format.bytes(tier.budget_bytes)} (${format.percent(share)})`,
    facts: [
      ["Rows", format.count(tier.rows)],
      ["Hits", restored ? `${format.count(restored.requests)} requests, ${format.tokens(restored.tokens)}` : "none"],
      ["Restore", restored?.requests ? `${format.ms(restored.ms / restored.requests)} each, ${format.bytes(restored.bytes)} in all` : null],
      ["Restore speed", restored?.ms > 0 ? `${format.bytes((1000 * restored.bytes) / restored.ms)}/s` : null],
      ["Written", written ? `${format.count(written.rows_written)} rows, ${format.bytes(written.bytes_written)}` : null],
      ["Write speed", written?.bytes_per_s ? `${format.bytes(written.bytes_per_s)}/s` : null],
      ["Promoted", tier.promoted ? format.count(tier.promoted) : null],
      ["Quarantined", tier.quarantined ? format.count(tier.quarantined) : null],
      ["Trouble", tier.trouble],
      ["Directory", tier.directory],
    ],
  };
}
