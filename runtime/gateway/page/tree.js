// The processes of the node, as they are now, and what has happened to them.

import { announce, confirmed, h, notice, setAttribute, setText, svg, sync } from "./dom.js";
import * as format from "./format.js";
import { json } from "./net.js";

const HEALED_S = 4;

export class TreePane {
  constructor(root, app) {
    this.app = app;
    this.body = h("tbody");
    this.log = h("ol", { class: "log" });
    this.summary = h("p", { class: "soft" });
    this.empty = h("div");
    this.problem = h("p", { class: "problem", role: "alert" });
    const heads = [["Process", ""], ["State", ""], ["Memory", "number"], ["Mailbox", "number"], ["Incarnation", "number"],
      ["Restarts", "number"], ["Up", "number"], ["PID", "number"], ["Last exit", ""]];
    const row = h("tr", null, heads.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)),
      h("th", { scope: "col" }, h("span", { class: "unseen" }, "Kill")));
    this.table = h("div", { class: "tree-layout" },
      h("div", { class: "card scroll", tabindex: 0, role: "region", "aria-label": "Processes" },
        h("table", { class: "tree-table" }, h("caption", { class: "unseen" }, "Processes of the node"), h("thead", null, row), this.body)),
      h("div", { class: "card pad" }, h("div", { class: "title-row" }, h("h3", null, "What has happened")),
        h("div", { role: "log", "aria-live": "polite", "aria-label": "What has happened" }, this.log)));
    root.append(h("div", { class: "head" }, h("h2", null, "Tree"), this.summary), this.problem, this.empty, this.table);
  }

  draw() {
    const { store } = this.app;
    const hasTree = Boolean(store.snapshot);
    this.table.hidden = !hasTree;
    this.empty.replaceChildren();
    if (!hasTree) {
      setText(this.summary, "");
      const text = store.rights && !store.isAdmin
        ? notice("Only for administrators", "This key may not see the processes of the node. Its own requests are under Requests.")
        : notice("Waiting for the node", "Its processes appear here once a second.");
      this.empty.append(text);
      return;
    }
    const processes = [...store.processes.values()];
    const down = processes.filter((one) => one.state !== "up").length;
    const memory = processes.reduce((sum, one) => sum + (one.memory_bytes ?? 0), 0);
    setText(this.summary, `${processes.length} processes, ${format.bytes(memory)}${down ? `, ${down} not up` : ""}`);
    sync(this.body, processes, (one) => one.id, (one) => this.make(one), (row, one) => this.update(row, one));
    const events = store.events.length ? store.events : [{ key: "none", at: null, what: "Nothing yet. A process that ends is started again, and both are listed here." }];
    sync(this.log, events, (one) => one.key, (one) => h("li", null,
      one.at === null ? null : h("time", null, format.clock(one.at)),
      h("span", { class: one.at === null ? "soft" : null }, one.id ? h("code", null, one.id) : null, one.id ? ` ${one.what}` : one.what)), () => {});
  }

  make(one) {
    const cells = {
      dot: h("span", { class: "dot", "aria-hidden": "true" }),
      state: h("td", { class: "state" }),
      memory: h("span", { class: "number" }),
      line: svg("polyline", { points: "" }),
      mailbox: h("td", { class: "number" }),
      incarnation: h("td", { class: "number" }),
      restarts: h("td", { class: "number" }),
      uptime: h("td", { class: "number" }),
      pid: h("td", { class: "number" }),
      exit: h("td", { class: "exit keep" }),
      kill: h("button", { type: "button", class: "small kill", "aria-label": `Kill ${one.id}`, click: () => this.kill(one.id) }, "Kill"),
    };
    cells.process = h("div", { class: "process" }, cells.dot, h("span", { class: "name" }, one.id));
    const spark = svg("svg", { class: "spark", viewBox: "0 0 60 20", preserveAspectRatio: "none", "aria-hidden": "true" }, cells.line);
    const row = h("tr", null,
      h("th", { scope: "row", class: "keep" }, cells.process), cells.state,
      h("td", { class: "number keep" }, h("div", { class: "memory" }, spark, cells.memory)),
      cells.mailbox, cells.incarnation, cells.restarts, cells.uptime, cells.pid, cells.exit,
      h("td", { class: "keep" }, cells.kill));
    row.cells_ = cells;
    return row;
  }

  update(row, one) {
    const cells = row.cells_;
    const { store } = this.app;
    row.style.setProperty("--depth", one.depth);
    setAttribute(cells.process, "data-depth", one.depth);
    setAttribute(row, "data-state", one.state);
    setAttribute(cells.dot, "data-state", one.state);
    const isHealed = one.healedAt !== null && store.snapshot.at - one.healedAt < HEALED_S;
    setAttribute(row, "data-healed", isHealed ? "" : null);
    const busy = one.busy_s >= 0.5 ? `, in ${one.busy_with} for ${format.ms(1000 * one.busy_s)}` : "";
    setText(cells.state, `${one.state}${busy}`);
    setText(cells.memory, format.bytes(one.memory_bytes));
    setText(cells.mailbox, one.mailbox ?? "–");
    setText(cells.incarnation, one.incarnation);
    setText(cells.restarts, one.restarts);
    setText(cells.uptime, format.duration(one.uptime_s));
    setText(cells.pid, one.pid ?? "–");
    setText(cells.exit, one.last_exit ?? "");
    cells.kill.style.visibility = one.kind === "launcher" ? "hidden" : "";
    cells.kill.disabled = one.pid === null || !store.isAdmin;
    const known = store.memory.get(one.id) ?? [];
    const points = [...Array(60 - known.length).fill(known[0] ?? 0), ...known];
    const most = Math.max(...points, 1);
    const least = Math.min(...points);
    const span = Math.max(most - least, most / 20);
    setAttribute(cells.line, "points", points.map((value, at) => `${at},${(18 - (16 * (value - least)) / span).toFixed(1)}`).join(" "));
  }

  async kill(id) {
    const one = this.app.store.processes.get(id);
    if (!one) return;
    const text = one.kind === "supervisor"
      ? "It and all processes below it end at once with SIGKILL, and are started again. Requests that run continue."
      : "It ends at once with SIGKILL, and its supervisor starts it again. Requests that run continue.";
    if (!(await confirmed(`Kill ${id}?`, text, "Kill it"))) return;
    this.problem.textContent = "";
    try {
      await json("POST", "/llama/v1/tree/kill", { id, incarnation: one.incarnation });
      this.app.store.happened(Date.now() / 1000, id, "was killed from this page");
      announce(`${id} was killed.`);
    } catch (error) {
      this.problem.textContent = error.message;
    }
    this.draw();
  }
}
