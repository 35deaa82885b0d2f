// What is known of the node: the last snapshot, requests, and what has changed between snapshots.

const KEPT_POINTS = 60;
const KEPT_EVENTS = 50;
const MAX_REQUESTS = 1200;

export class Store {
  constructor() {
    this.onChange = () => {};
    this.clear();
  }

  clear() {
    this.rights = null;
    this.snapshot = null;
    this.requests = new Map();
    this.sorted = [];
    this.isSorted = true;
    this.memory = new Map(); // ids of processes → the last sizes
    this.events = []; // what has happened to processes, the latest first
    this.processes = new Map();
    this.onChange();
  }

  get isAdmin() { return Boolean(this.rights?.admin); }

  get running() {
    let found = 0;
    for (const one of this.requests.values()) if (one.outcome === null) found += 1;
    return found;
  }

  setRights(rights) {
    this.rights = rights;
    this.onChange();
  }

  // ── requests ──

  setRequests({ all, requests, gone }) {
    if (all) this.requests.clear();
    for (const id of gone) this.requests.delete(id);
    const now = performance.now();
    for (const one of requests) {
      one.seen = now;
      this.requests.set(one.id, one);
    }
    if (this.requests.size > MAX_REQUESTS) {
      for (const one of this.latest().slice(MAX_REQUESTS)) this.requests.delete(one.id);
    }
    this.isSorted = false;
    this.onChange();
  }

  // The requests, the latest first.
  latest() {
    if (!this.isSorted) {
      this.sorted = [...this.requests.values()].sort((one, other) => other.at - one.at);
      this.isSorted = true;
    }
    return this.sorted;
  }

  // ── snapshots ──

  setSnapshot(found) {
    this.snapshot = found;
    const before = this.processes;
    this.processes = new Map();
    this.note(found.tree, 0, before, found.at);
    for (const id of this.memory.keys()) if (!this.processes.has(id)) this.memory.delete(id);
    for (const [id, one] of before) {
      if (!this.processes.has(id)) this.happened(found.at, id, "has ended and is not started again");
    }
    this.onChange();
  }

  note(node, depth, before, at) {
    const known = before.get(node.id);
    const isUp = node.state === "up";
    // `ran`: the incarnation that was up last.
    const one = { ...node, depth, healedAt: known?.healedAt ?? null, ran: isUp ? node.incarnation : known?.ran ?? 0 };
    this.processes.set(node.id, one);
    if (known?.state === "up" && !isUp) this.happened(at, node.id, `is ${node.state}`);
    if (known?.ran && isUp && node.incarnation > known.ran) {
      one.healedAt = at;
      const why = node.last_exit ? ` (${node.last_exit})` : "";
      this.happened(at, node.id, `runs again, as incarnation ${node.incarnation}${why}`);
    } else if (known && isUp && known.state !== "up") {
      one.healedAt = at;
      this.happened(at, node.id, "is up");
    } else if (!known && before.size) this.happened(at, node.id, "was started");
    const points = this.memory.get(node.id) ?? [];
    points.push(node.memory_bytes ?? 0);
    if (points.length > KEPT_POINTS) points.shift();
    this.memory.set(node.id, points);
    for (const child of node.children) this.note(child, depth + 1, before, at);
  }

  happened(at, id, what) {
    this.events.unshift({ at, id, what, key: `${at}-${id}-${what}` });
    this.events.length = Math.min(this.events.length, KEPT_EVENTS);
  }
}
