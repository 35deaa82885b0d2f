// Requests to this gateway alone, with the key of this tab.

const KEY = "llama-actors-key";

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

function headers(more) {
  const found = { ...more };
  if (key()) found.authorization = `Bearer ${key()}`;
  return found;
}

export class Failed extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function failureOf(answer) {
  let text = `The gateway answered with status ${answer.status}.`;
  try {
    const body = await answer.json();
    text = body.error?.message ?? body.error ?? text;
  } catch { /* it is no JSON */ }
  return new Failed(answer.status, String(text));
}

export async function call(method, path, body, options = {}) {
  const init = { method, headers: headers(body === undefined ? {} : { "content-type": "application/json" }), ...options };
  if (body !== undefined) init.body = JSON.stringify(body);
  const answer = await fetch(path, init);
  if (!answer.ok) throw await failureOf(answer);
  return answer;
}

export async function json(method, path, body, options) {
  return (await call(method, path, body, options)).json();
}

// The events of a stream: objects with name, id and data (a text).
export async function* eventsOf(answer, onBytes = () => {}) {
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes();
      rest += decoder.decode(value, { stream: true });
      const frames = rest.split("\n\n");
      rest = frames.pop();
      for (const frame of frames) {
        const found = { name: "message", id: null, data: null };
        for (const line of frame.split("\n")) {
          const at = line.indexOf(":");
          if (at <= 0) continue;
          const text = line.slice(at + 1).replace(/^ /, "");
          const field = line.slice(0, at);
          if (field === "event") found.name = text;
          else if (field === "id") found.id = text;
          else if (field === "data") found.data = found.data === null ? text : `${found.data}\n${text}`;
        }
        if (found.data !== null) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const SILENT_MS = 12000;
const PAUSES_MS = [300, 600, 1200, 2500, 5000];

// Follows /llama/v1/events and opens it again when it breaks; `on` has a function for each event,
// and `state(name, detail)`.
export class Follower {
  constructor(on) {
    this.on = on;
    this.last = null;
    this.failures = 0;
    this.abort = null;
    this.timer = null;
  }

  start() {
    this.stop();
    const abort = new AbortController();
    this.abort = abort;
    this.run(abort);
  }

  stop() {
    this.abort?.abort();
    clearTimeout(this.timer);
    this.abort = null;
  }

  async run(abort) {
    let watchdog = null;
    let isFinal = false;
    const broken = new AbortController();
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => broken.abort(), SILENT_MS);
    };
    try {
      alive();
      const more = { accept: "text/event-stream", ...(this.last ? { "last-event-id": this.last } : {}) };
      const signal = AbortSignal.any([abort.signal, broken.signal]);
      const answer = await fetch("/llama/v1/events", { headers: headers(more), signal, cache: "no-store" });
      if (!answer.ok) throw await failureOf(answer);
      for await (const event of eventsOf(answer, alive)) {
        if (event.id) this.last = event.id;
        if (event.name === "hello") {
          this.failures = 0;
          this.on.state("live");
        }
        this.on[event.name]?.(JSON.parse(event.data));
      }
    } catch (error) {
      if (error instanceof Failed && (error.status === 401 || error.status === 403)) {
        isFinal = true;
        this.on.state("refused", error.message);
      }
    }
    clearTimeout(watchdog);
    if (abort.signal.aborted || isFinal) return;
    this.on.state("lost");
    const pause = PAUSES_MS[Math.min(this.failures, PAUSES_MS.length - 1)];
    this.failures += 1;
    this.timer = setTimeout(() => this.run(abort), pause);
  }
}
