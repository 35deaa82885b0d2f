// Where the time of a reply went, as bars: queue, lookup, restore, prefill, decode, pauses.

import { h, svg } from "./dom.js";
import * as format from "./format.js";

const NAMES = {
  gateway: "Gateway", queue: "Queue", lookup: "Lookup", live: "Restore from the context", ram: "Restore from RAM",
  ram_file: "Restore from RAM files", disk: "Restore from disk", prefill: "Prefill", decode: "Decode", aside: "Aside for others", pause: "Pause: a process ended",
};

// The steps of a reply: kind, start and length in milliseconds since the request came.
export function stepsOf(request, reply, took) {
  const steps = [];
  const add = (kind, start, length) => { if (length > 0) steps.push({ kind, start, length }); };
  const end = reply.phase === "done" ? Math.max(reply.last_at_ms ?? took, reply.first_at_ms ?? 0) : took;
  const first = reply.first_at_ms ?? end;
  if (reply.phase === "done" && reply.finish_reason) {
    const restore = reply.source in NAMES ? reply.source : "ram";
    const parts = [["queue", reply.queue_ms], ["lookup", reply.lookup_ms], [restore, reply.restore_ms], ["prefill", reply.prefill_ms]];
    const sum = parts.reduce((total, [, length]) => total + length, 0);
    const scale = sum > first && sum > 0 ? first / sum : 1;
    let at = first - sum * scale;
    add("gateway", 0, at);
    for (const [kind, length] of parts) {
      add(kind, at, length * scale);
      at += length * scale;
    }
    add("decode", first, end - first);
  } else {
    const begun = reply.prompt_tokens ? reply.accepted_at_ms ?? 0 : end;
    add(request.replies.length ? "queue" : "gateway", 0, Math.min(begun, first));
    add("prefill", begun, first - begun);
    if (reply.first_at_ms !== null) add("decode", first, end - first);
  }
  for (const [at, length] of reply.pauses) add("pause", Math.max(0, at - length), length);
  return steps;
}

// How long a request has taken so far.
export function tookOf(request) {
  return request.outcome === null ? request.took_ms + performance.now() - request.seen : request.took_ms;
}

function blank(request) {
  return { phase: request.outcome === null ? "waiting" : "done", pauses: [], first_at_ms: null, last_at_ms: null, accepted_at_ms: null };
}

export function draw(element, request) {
  const took = Math.max(tookOf(request), 1);
  const reply = request.replies[0] ?? blank(request);
  const steps = stepsOf(request, reply, took);
  while (element.childElementCount > steps.length) element.lastElementChild.remove();
  steps.forEach((one, at) => {
    const rect = element.children[at] ?? element.appendChild(svg("rect", { y: 0, height: 10 }));
    rect.setAttribute("x", ((1000 * one.start) / took).toFixed(1));
    rect.setAttribute("width", Math.max(1.5, (1000 * one.length) / took).toFixed(1));
    rect.setAttribute("data-kind", one.kind);
  });
}

export function bar(isTall) {
  return svg("svg", { class: isTall ? "fall tall" : "fall", viewBox: "0 0 1000 10", preserveAspectRatio: "none", "aria-hidden": "true" });
}

export function table(request, reply, took) {
  const rows = stepsOf(request, reply, took);
  return h("table", { class: "steps" }, h("caption", { class: "unseen" }, "Where the time went"), h("tbody", null, rows.map((one) => h("tr", null,
    h("td", null, h("span", { class: "swatch", "data-kind": one.kind, "aria-hidden": "true" }), NAMES[one.kind]),
    h("td", { class: "number soft" }, `at ${format.ms(one.start)}`),
    h("td", { class: "number" }, format.ms(one.length))))));
}

// Tokens a second while it was, or is, generated.
export function speedOf(reply) {
  if (!reply || reply.generated_tokens < 2 || reply.first_at_ms === null) return null;
  const took = reply.decode_ms || reply.last_at_ms - reply.first_at_ms;
  return took > 0 ? (1000 * (reply.generated_tokens - 1)) / took : null;
}
