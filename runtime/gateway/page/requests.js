// The requests that run, and the last that have ended. Only the rows in sight are in the document.

import { facts, h, notice, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import * as waterfall from "./waterfall.js";

const PHONE = matchMedia("(max-width: 640px)");
const MORE = 4; // rows above and below those in sight
const PHASES = { waiting: "waiting", queued: "in the queue", prefill: "prefill", decode: "decode", done: "ends" };

export class RequestsPane {
  constructor(root, app) {
    this.app = app;
    this.selected = null;
    this.opened = null;
    this.rows = [];
    this.summary = h("p", { class: "soft" });
    this.filter = h("input", { type: "search", id: "request-filter", placeholder: "Show only: model, key, client, id", input: () => this.draw() });
    this.space = h("div", { class: "space", role: "presentation" });
    this.list = h("div", { class: "card list", role: "listbox", tabindex: 0, "aria-label": "Requests", scroll: () => this.drawRows(), keydown: (event) => this.press(event) }, this.space);
    this.detail = h("aside", { class: "card pad detail", "aria-label": "Request", hidden: true });
    this.empty = h("div");
    this.layout = h("div", { class: "requests-layout" }, this.list, this.detail);
    root.append(
      h("div", { class: "head" }, h("h2", null, "Requests"), this.summary, h("div", { class: "end" }, h("label", { class: "unseen", for: "request-filter" }, "Show only"), this.filter)),
      this.empty, this.layout);
    new ResizeObserver(() => this.drawRows()).observe(this.list);
    this.shown = [];
  }

  select(id) {
    this.selected = this.opened = id;
    this.filter.value = "";
    this.isToBeSeen = true;
  }

  draw() {
    performance.mark("requests-start");
    const { store } = this.app;
    const words = this.filter.value.trim().toLowerCase();
    const all = store.latest();
    this.shown = words ? all.filter((one) => this.textOf(one).includes(words)) : all;
    const ended = all.length - store.running;
    setText(this.summary, `${store.running} running, ${ended} ended${words ? `, ${this.shown.length} shown` : ""}`);
    this.empty.replaceChildren();
    this.list.hidden = !this.shown.length;
    if (!this.shown.length) {
      this.empty.append(words ? notice("None of them", "No request has these words.")
        : notice("No requests yet", "Each request for a reply appears here while it runs, and stays with the last 200."));
    }
    this.drawRows();
    this.drawDetail();
    performance.measure("requests", "requests-start");
    performance.clearMarks("requests-start");
  }

  textOf(one) {
    return `${one.model ?? ""} ${one.key} ${one.client} ${one.route} ${one.id} ${one.answer_id}`.toLowerCase();
  }

  get rowHeight() { return PHONE.matches ? 64 : 56; }

  drawRows() {
    const height = this.rowHeight;
    const space = `${this.shown.length * height}px`;
    if (this.space.style.height !== space) this.space.style.height = space;
    if (this.isToBeSeen && this.list.clientHeight) {
      this.isToBeSeen = false;
      this.bringIntoSight(this.indexOfSelected(), height);
    }
    const first = Math.max(0, Math.floor(this.list.scrollTop / height) - MORE);
    const n = Math.min(this.shown.length - first, Math.ceil((this.list.clientHeight || 600) / height) + 2 * MORE);
    while (this.rows.length < n) this.rows.push(this.space.appendChild(this.make()));
    while (this.rows.length > Math.max(n, 0)) this.rows.pop().remove();
    this.rows.forEach((row, at) => this.update(row, first + at, height));
    const chosen = this.rows.find((row) => row.request === this.selected);
    setAttribute(this.list, "aria-activedescendant", chosen ? chosen.id : null);
  }

  make() {
    const parts = {
      dot: h("span", { class: "dot" }), model: h("span", { class: "model" }), sub: h("span", { class: "sub" }), fall: waterfall.bar(false),
      tokens: h("span"), cached: h("small"), speed: h("span"), took: h("span"), finish: h("small"),
    };
    const row = h("div", { class: "row", role: "option", click: () => this.open(row.request) },
      parts.dot, h("span", { class: "what" }, parts.model, parts.sub), h("span", { class: "fallcell" }, parts.fall),
      h("span", { class: "right tokens" }, parts.tokens, parts.cached), h("span", { class: "right speed" }, parts.speed, h("small", null, "tokens/s")),
      h("span", { class: "right took" }, parts.took, parts.finish));
    row.parts_ = parts;
    return row;
  }

  update(row, at, height) {
    const one = this.shown[at];
    const parts = row.parts_;
    const stamp = `${one.id} ${one.seen} ${at} ${height} ${this.shown.length} ${one.id === this.selected}`;
    if (row.stamp === stamp && one.outcome !== null) return;
    row.stamp = stamp;
    const reply = one.replies[0];
    const isRunning = one.outcome === null;
    row.request = one.id;
    setAttribute(row, "id", `request-${at}`);
    setAttribute(row, "aria-setsize", this.shown.length);
    setAttribute(row, "aria-posinset", at + 1);
    setAttribute(row, "aria-selected", one.id === this.selected);
    const place = `translateY(${at * height}px)`;
    if (row.style.transform !== place) row.style.transform = place;
    setAttribute(parts.dot, "data-state", isRunning ? "running" : one.outcome);
    setText(parts.model, one.model ?? one.route);
    setText(parts.sub, [format.clock(one.at), one.key || null, clientOf(one)].filter(Boolean).join(" · "));
    setText(parts.tokens, reply ? `${format.compact(reply.prompt_tokens)} → ${format.compact(reply.generated_tokens)}` : "–");
    setText(parts.cached, reply?.prompt_tokens ? `${format.percent(reply.cached_tokens / reply.prompt_tokens)} warm` : "");
    const speed = waterfall.speedOf(reply);
    setText(parts.speed, speed === null ? "–" : speed.toFixed(speed < 100 ? 1 : 0));
    setText(parts.took, format.ms(waterfall.tookOf(one)));
    setText(parts.finish, stateOf(one));
    waterfall.draw(parts.fall, one);
  }

  // ── choosing ──

  indexOfSelected() { return this.shown.findIndex((one) => one.id === this.selected); }

  press(event) {
    const at = this.indexOfSelected();
    const page = Math.max(1, Math.floor(this.list.clientHeight / this.rowHeight) - 1);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: this.shown.length - 1, PageDown: at + page, PageUp: at - page }[event.key];
    if (next !== undefined) {
      event.preventDefault();
      const to = Math.max(0, Math.min(this.shown.length - 1, next));
      this.selected = this.shown[to]?.id ?? null;
      if (this.opened) this.opened = this.selected;
      this.bringIntoSight(to, this.rowHeight);
      this.draw();
    } else if ((event.key === "Enter" || event.key === " ") && this.selected) {
      event.preventDefault();
      this.open(this.selected);
    } else if (event.key === "Escape" && this.opened) this.close();
  }

  bringIntoSight(at, height) {
    if (at < 0) return;
    const top = at * height;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    else if (top + height > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = top + height - this.list.clientHeight;
  }

  open(id) {
    this.selected = this.opened = id;
    this.draw();
  }

  close() {
    this.opened = null;
    this.draw();
    this.list.focus();
  }

  // ── one request ──

  drawDetail() {
    const one = this.opened ? this.app.store.requests.get(this.opened) : undefined;
    this.layout.classList.toggle("has-detail", Boolean(one));
    this.detail.hidden = !one;
    if (!one) return;
    const stamp = `${one.id} ${one.outcome} ${one.seen}`;
    const isSame = this.drawn === one.id;
    if (this.stamp === stamp && one.outcome !== null) return;
    this.stamp = stamp;
    const took = Math.max(waterfall.tookOf(one), 1);
    const hadFocus = isSame && this.detail.contains(document.activeElement) ? document.activeElement.textContent : null;
    const top = isSame ? this.detail.scrollTop : 0;
    this.drawn = one.id;
    const close = h("button", { type: "button", class: "quiet small end", click: () => this.close() }, "Close");
    const why = h("button", { type: "button", class: "quiet", click: () => this.app.showWhy(one.id) }, "Why was it not warmer?");
    this.detail.replaceChildren(
      h("div", { class: "title-row" }, h("h3", null, one.model ?? one.route), h("span", { class: "badge", "data-tone": toneOf(one) }, stateOf(one)), close),
      ...(one.replies.length ? one.replies : [null]).map((reply) => this.replyOf(one, reply, took)),
      h("div", { class: "actions" }, why),
      h("div", { class: "reply" }, facts([
        ["Request", h("code", null, one.id)], ["Came", format.clock(one.at)], ["Route", `${one.method} ${one.route}`], ["API", one.api],
        ["Key", one.key], ["Client", one.client], ["HTTP status", one.status || null], ["Stream", one.is_stream ? "yes" : "no"], ["Worker", one.worker],
        ["Taken over", one.n_taken ? `${one.n_taken} times` : null], ["Canonical rules", one.rules.join(", ")], ["Error", one.error],
      ])));
    this.detail.scrollTop = top;
    if (hadFocus) [...this.detail.querySelectorAll("button")].find((button) => button.textContent === hadFocus)?.focus();
  }

  replyOf(one, reply, took) {
    const fall = waterfall.bar(true);
    waterfall.draw(fall, reply ? { ...one, replies: [reply] } : one);
    if (!reply) return h("div", { class: "reply" }, fall);
    const speed = waterfall.speedOf(reply);
    const read = reply.phase === "prefill" ? `${format.count(reply.read_tokens)} of ${format.count(reply.prompt_tokens)} read` : null;
    return h("div", { class: "reply" }, fall, waterfall.table(one, reply, took), facts([
      ["Prompt", format.tokens(reply.prompt_tokens)], ["Progress", read],
      ["Warm", `${format.tokens(reply.cached_tokens)}${format.source(reply.source)}`],
      ["Reply", format.tokens(reply.generated_tokens)], ["Speed", speed === null ? null : `${speed.toFixed(1)} tokens/s`],
      ["First token", reply.first_at_ms === null ? null : format.ms(reply.first_at_ms)],
      ["Place in the queue", reply.phase === "queued" ? reply.place : null],
      ["Pauses", reply.pauses.length ? `${reply.pauses.length}, ${format.ms(reply.pauses.reduce((sum, [, length]) => sum + length, 0))}` : null],
      ["Drafted", reply.drafted_tokens ? `${reply.draft_hits} of ${reply.drafted_tokens} accepted` : null],
      ["Hit", reply.hit], ["Finish", reply.finish_reason],
    ]));
  }
}

function stateOf(one) {
  const reply = one.replies[0];
  if (one.outcome === null) return PHASES[reply?.phase ?? "waiting"] ?? "runs";
  if (one.outcome === "ok") return reply?.finish_reason ?? (one.status ? String(one.status) : "ok");
  return { failed: one.error ?? "failed", client_gone: "client gone", broken: "broken", stopped: "stopped" }[one.outcome] ?? one.outcome;
}

function clientOf(one) {
  return one.client.startsWith("Mozilla/") ? "browser" : one.client.split(" ")[0] || one.api;
}

function toneOf(one) {
  if (one.outcome === null) return "accent";
  return one.outcome === "ok" ? "good" : "bad";
}
