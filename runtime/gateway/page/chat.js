// A conversation with a model of this node, by /v1/chat/completions.

import { announce, h, setText } from "./dom.js";
import * as format from "./format.js";
import { call, eventsOf, json } from "./net.js";

const NUMBERS = [["temperature", "Temperature", "0.8"], ["top_p", "Top p", "0.95"], ["top_k", "Top k", "40"], ["min_p", "Min p", "0.05"], ["seed", "Seed", "random"], ["max_tokens", "Most tokens", "no limit"]];

export class ChatPane {
  constructor(root, app) {
    this.app = app;
    this.messages = [];
    this.abort = null;
    this.model = h("select", { id: "chat-model" });
    this.system = h("textarea", { id: "chat-system", rows: 3, placeholder: "None" });
    this.tools = h("textarea", { id: "chat-tools", class: "code", rows: 4, spellcheck: "false", placeholder: "[{\"type\": \"function\", …}]" });
    this.thinking = h("select", { id: "chat-thinking" }, [["", "as the model does"], ["off", "off"], ["on", "on"], ["low", "low effort"], ["medium", "medium effort"], ["high", "high effort"]].map(([value, text]) => h("option", { value }, text)));
    this.numbers = Object.fromEntries(NUMBERS.map(([name, , usual]) => [name, h("input", { id: `chat-${name}`, type: "text", inputmode: "decimal", placeholder: usual, autocomplete: "off" })]));
    this.turns = h("div", { class: "turns", tabindex: 0, role: "region", "aria-label": "Conversation" });
    this.input = h("textarea", { id: "chat-input", rows: 2, placeholder: "Write a message", keydown: (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.send(); } } });
    this.sendButton = h("button", { type: "submit", class: "primary" }, "Send");
    this.stopButton = h("button", { type: "button", class: "quiet", hidden: true, click: () => this.abort?.abort() }, "Stop");
    this.problem = h("p", { class: "problem", role: "alert" });
    const field = (id, text, control) => h("div", { class: "field" }, h("label", { for: id }, text), control);
    root.append(h("div", { class: "head" }, h("h2", null, "Chat"), h("p", { class: "soft" }, "Every reply is a request: watch it under Requests while it runs."), h("button", { type: "button", class: "quiet small end", click: () => this.clear() }, "New conversation")),
      h("div", { class: "chat-layout" },
        h("div", { class: "card talk" }, this.turns,
          h("form", { class: "compose", submit: (event) => { event.preventDefault(); this.send(); } },
            h("label", { class: "unseen", for: "chat-input" }, "Message"), this.input, this.stopButton, this.sendButton)),
        h("div", { class: "card pad" }, this.problem,
          field("chat-model", "Model", this.model), field("chat-system", "System", this.system), field("chat-thinking", "Thinking", this.thinking),
          h("div", { class: "pair" }, NUMBERS.map(([name, text]) => field(`chat-${name}`, text, this.numbers[name]))),
          field("chat-tools", "Tools, as JSON", this.tools))));
    this.drawTurns();
  }

  draw() {
    const found = this.app.store.snapshot;
    if (found) {  // models that are loaded, and those that are at their first use
      const barred = new Set(found.models.filter((one) => one.can_generate === false).map((one) => one.id));
      const names = new Set([...found.models, ...(found.known ?? [])].map((one) => one.id ?? one.model));
      this.setModels([...names].filter((one) => !barred.has(one)).sort());
    }
    else if (!this.isAsked) {
      this.isAsked = true;
      json("GET", "/v1/models").then((found) => this.setModels(found.data.map((one) => one.id)), () => { this.isAsked = false; });
    }
  }

  setModels(names) {
    if (names.join() === this.names || document.activeElement === this.model) return;
    this.names = names.join();
    const before = this.model.value;
    this.model.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    if (names.includes(before)) this.model.value = before;
  }

  clear() {
    this.abort?.abort();
    this.messages = [];
    this.drawTurns();
    this.input.focus();
  }

  drawTurns() {
    if (this.messages.length) return;
    this.turns.replaceChildren(h("p", { class: "notice" }, h("strong", null, "Say something"), "Enter sends, Shift and Enter begins a new line."));
  }

  // What the form asks for; throws an Error with what is wrong with it.
  options() {
    const body = {};
    for (const [name, text] of NUMBERS) {
      const given = this.numbers[name].value.trim();
      if (!given) continue;
      const value = Number(given);
      if (!Number.isFinite(value)) throw new Error(`${text} is no number: ${given}`);
      body[name] = value;
    }
    const thinking = this.thinking.value;
    if (thinking === "on" || thinking === "off") body.enable_thinking = thinking === "on";
    else if (thinking) body.reasoning_effort = thinking;
    if (this.tools.value.trim()) {
      try {
        body.tools = JSON.parse(this.tools.value);
      } catch (error) {
        throw new Error(`Tools are no JSON: ${error.message}`);
      }
    }
    return body;
  }

  async send() {
    const text = this.input.value.trim();
    if (!text || this.abort) return;
    let options;
    try {
      options = this.options();
      this.problem.textContent = "";
    } catch (error) {
      this.problem.textContent = error.message;
      return;
    }
    if (!this.messages.length) this.turns.replaceChildren();
    this.messages.push({ role: "user", content: text });
    this.turns.append(h("div", { class: "turn user" }, h("p", { class: "unseen" }, "You"), h("p", { class: "text" }, text)));
    this.input.value = "";
    const turn = new Turn(this.turns, this.model.value, this.app);
    this.abort = new AbortController();
    this.sendButton.hidden = true;
    this.stopButton.hidden = false;
    const system = this.system.value.trim();
    const messages = [...(system ? [{ role: "system", content: system }] : []), ...this.messages];
    try {
      const body = { model: this.model.value, messages, stream: true, stream_options: { include_usage: true }, ...options };
      const answer = await call("POST", "/v1/chat/completions", body, { signal: this.abort.signal });
      turn.request = answer.headers.get("x-request-id");
      for await (const event of eventsOf(answer)) {
        if (event.data === "[DONE]") break;
        const chunk = JSON.parse(event.data);
        if (chunk.error) throw new Error(chunk.error.message);
        turn.add(chunk);
      }
      if (!turn.finish) throw new Error("The stream broke before the reply had ended.");
      announce("The reply has ended.");
    } catch (error) {
      turn.fail(error.name === "AbortError" ? "Stopped." : error.message);
    }
    turn.end();
    this.messages.push(turn.message());
    this.abort = null;
    const hadFocus = document.activeElement === this.stopButton;
    this.sendButton.hidden = false;
    this.stopButton.hidden = true;
    if (hadFocus) this.input.focus();
  }
}

// A reply as it comes.
class Turn {
  constructor(parent, model, app) {
    this.app = app;
    this.parent = parent;
    this.text = "";
    this.thoughts = "";
    this.calls = [];
    this.request = null;
    this.finish = null;
    this.last = {};
    this.isDue = false;
    this.textBox = h("p", { class: "text caret" });
    this.thoughtBox = h("p", { class: "text" });
    this.thinking = h("details", { hidden: true }, h("summary", null, "Thinking"), this.thoughtBox);
    this.callBox = h("div");
    this.meta = h("p", { class: "meta" });
    this.problem = h("p", { class: "problem", role: "alert" });
    parent.append(h("div", { class: "turn" }, h("p", { class: "who" }, model), this.thinking, this.textBox, this.callBox, this.problem, this.meta));
    this.show();
  }

  add(chunk) {
    if (chunk.usage) this.last.usage = chunk.usage;
    if (chunk.timings) this.last.timings = chunk.timings;
    const choice = chunk.choices?.[0];
    if (chunk.cache) this.last.cache = chunk.cache;
    if (!choice) return;
    if (choice.cache) this.last.cache = choice.cache;
    this.text += choice.delta?.content ?? "";
    this.thoughts += choice.delta?.reasoning_content ?? "";
    for (const piece of choice.delta?.tool_calls ?? []) {
      const one = (this.calls[piece.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
      one.id ||= piece.id ?? "";
      one.function.name += piece.function?.name ?? "";
      one.function.arguments += piece.function?.arguments ?? "";
    }
    this.finish = choice.finish_reason ?? this.finish;
    this.show();
  }

  show() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      const isAtEnd = this.parent.scrollHeight - this.parent.scrollTop - this.parent.clientHeight < 60;
      setText(this.textBox, this.text);
      this.thinking.hidden = !this.thoughts;
      setText(this.thoughtBox, this.thoughts);
      this.callBox.replaceChildren(...this.calls.filter(Boolean).map((one) => h("p", { class: "call" }, `${one.function.name}(${one.function.arguments})`)));
      if (isAtEnd) this.parent.scrollTop = this.parent.scrollHeight;
    });
  }

  fail(text) { this.problem.textContent = text; }

  end() {
    this.textBox.classList.remove("caret");
    const { usage, timings, cache } = this.last;
    const found = [];
    if (usage) found.push(`${format.count(usage.prompt_tokens)} + ${format.tokens(usage.completion_tokens)}`);
    if (timings?.predicted_per_second) found.push(`${timings.predicted_per_second.toFixed(1)} tokens/s`);
    if (cache) found.push(`${format.percent(cache.reused_tokens / Math.max(cache.prompt_tokens, 1))} warm${format.source(cache.source)}`);
    if (this.finish && this.finish !== "stop") found.push(`ended by ${this.finish}`);
    this.meta.replaceChildren(...found.map((text) => h("span", null, text)));
    if (this.request) {
      this.meta.append(h("button", { type: "button", class: "linkish", click: () => this.app.showRequest(this.request) }, "Request"),
        h("button", { type: "button", class: "linkish", click: () => this.app.showWhy(this.request) }, "Why"));
    }
    this.show();
  }

  message() {
    const found = { role: "assistant", content: this.text };
    if (this.thoughts) found.reasoning_content = this.thoughts;
    if (this.calls.length) found.tool_calls = this.calls.filter(Boolean);
    return found;
  }
}
