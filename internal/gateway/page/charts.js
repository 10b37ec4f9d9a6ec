// Drawings: sparklines and strips as SVG, the maps of models on canvas.
import { h } from "./format.js";

const svgns = "http://www.w3.org/2000/svg";

// Series keeps the last values of one number.
export class Series {
  constructor(room = 90) {
    this.room = room;
    this.values = [];
  }

  push(v) {
    this.values.push(v);
    if (this.values.length > this.room) this.values.shift();
  }
}

// sparkline draws a series; its full width is the series' room, the newest value at the right.
export function sparkline(series, label) {
  const width = 100, height = 40, top = 6;
  const svg = document.createElementNS(svgns, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const v = series.values;
  if (v.length < 2) return svg;
  const most = Math.max(...v, 1e-9);
  const x = (i) => width - ((v.length - 1 - i) * width) / (series.room - 1);
  const y = (n) => height - 3 - (n / most) * (height - top - 3);
  const points = v.map((n, i) => `${x(i).toFixed(2)},${y(n).toFixed(2)}`).join(" ");
  const area = document.createElementNS(svgns, "polygon");
  area.setAttribute("class", "spark-area");
  area.setAttribute("points", `${x(0).toFixed(2)},${height} ${points} ${width},${height}`);
  const line = document.createElementNS(svgns, "polyline");
  line.setAttribute("class", "spark-line");
  line.setAttribute("points", points);
  svg.append(area, line);
  return svg;
}

// balance is the busiest expert's rows over the mean of all: 1 where all are equally busy, null where nothing was routed.
export function balance(rows) {
  const sum = rows.reduce((a, b) => a + b, 0);
  return sum > 0 ? (Math.max(...rows) * rows.length) / sum : null;
}

// strip draws a layer's rows per expert, the fullest colour for the busiest.
export function strip(rows, label) {
  const svg = document.createElementNS(svgns, "svg");
  svg.setAttribute("class", "strip");
  svg.setAttribute("viewBox", `0 0 ${rows.length} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const most = Math.max(...rows, 1);
  const gap = Math.min(0.18, rows.length / 900);
  rows.forEach((n, i) => {
    const cell = document.createElementNS(svgns, "rect");
    for (const [key, value] of [["x", i], ["width", 1 - gap], ["height", 1], ["fill-opacity", (0.1 + (0.9 * n) / most).toFixed(3)]]) cell.setAttribute(key, value);
    const title = document.createElementNS(svgns, "title");
    title.textContent = `expert ${i}: ${n.toLocaleString("en")} rows`;
    cell.append(title);
    svg.append(cell);
  });
  return svg;
}

const named = /^(.+)\/([^/]+)\/(\d+)$/;

// models groups experts that have names by model: [{model, layers: [{layer, experts: [by index]}], width, here, total}].
export function models(experts) {
  const byModel = new Map();
  for (const e of experts) {
    const m = named.exec(e.name || "");
    if (!m) continue;
    const [, model, layer, index] = m;
    if (!byModel.has(model)) byModel.set(model, { model, layers: new Map(), width: 0, here: 0, total: 0 });
    const g = byModel.get(model);
    if (!g.layers.has(layer)) g.layers.set(layer, []);
    g.layers.get(layer)[Number(index)] = e;
    g.width = Math.max(g.width, Number(index) + 1);
    g.total++;
    if (e.where === "local") g.here++;
  }
  const order = new Intl.Collator("en", { numeric: true });
  return [...byModel.values()].sort((a, b) => order.compare(a.model, b.model)).map((g) => ({
    ...g,
    layers: [...g.layers].sort((a, b) => order.compare(a[0], b[0])).map(([layer, list]) => ({ layer, experts: list })),
  }));
}

// kindOf says which colour of the legend an expert has.
export function kindOf(e) {
  if (e.state === "failed") return "bad";
  if (e.state === "loading" || e.state === "draining") return "busy";
  return e.where === "local" ? "here" : "there";
}

// ModelMap draws one model and tells which expert is pointed at.
export class ModelMap {
  constructor(pick) {
    this.title = h("h3");
    this.canvas = h("canvas", { role: "img" });
    this.tip = h("p", { class: "tip", "aria-hidden": "true" });
    this.element = h("div", { class: "map" }, this.title, this.canvas, this.tip);
    this.canvas.addEventListener("mousemove", (ev) => {
      const e = this.at(ev);
      this.tip.textContent = e ? `${e.name} · ${e.where === "local" ? "here" : "elsewhere"} · ${e.state} · ${e.providers} ${e.providers === 1 ? "host" : "hosts"}` : "";
    });
    this.canvas.addEventListener("mouseleave", () => { this.tip.textContent = ""; });
    this.canvas.addEventListener("click", (ev) => {
      const e = this.at(ev);
      if (e) pick(e.name);
    });
  }

  at(ev) {
    if (!this.group) return undefined;
    const box = this.canvas.getBoundingClientRect();
    const scale = this.width / box.width;
    const column = Math.floor(((ev.clientX - box.left) * scale - this.left) / this.cell);
    const row = Math.floor(((ev.clientY - box.top) * scale - this.top) / this.cell);
    return this.group.layers[row]?.experts[column];
  }

  draw(group) {
    this.group = group;
    const { layers, width, here, total, model } = group;
    this.title.replaceChildren(model, h("span", {}, `${total.toLocaleString("en")} experts in ${layers.length} ${layers.length === 1 ? "layer" : "layers"}, ${here.toLocaleString("en")} here`));
    this.canvas.setAttribute("aria-label", `${model}: ${total} experts in ${layers.length} layers, ${here} hosted here`);
    const room = this.element.clientWidth || 1000;
    const longest = Math.max(...layers.map((l) => l.layer.length));
    this.left = 10 + longest * 7;
    this.top = 3; // half a letter more than the first row is high
    this.cell = Math.max(3, Math.min(18, Math.floor((room - this.left) / width)));
    this.width = this.left + this.cell * width;
    const height = this.top + this.cell * layers.length;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.width = `${this.width}px`;
    const style = getComputedStyle(document.documentElement);
    const colour = {
      here: style.getPropertyValue("--accent"), there: style.getPropertyValue("--there"),
      busy: style.getPropertyValue("--warn-fill"), bad: style.getPropertyValue("--bad-fill"), none: style.getPropertyValue("--soft"),
    };
    const c = this.canvas.getContext("2d");
    c.scale(ratio, ratio);
    c.textBaseline = "middle";
    c.textAlign = "right";
    c.font = "11px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
    const gap = this.cell > 5 ? 2 : 1;
    const every = Math.ceil(12 / this.cell);
    layers.forEach(({ layer, experts }, row) => {
      const y = this.top + row * this.cell;
      if (row % every === 0) {
        c.fillStyle = style.getPropertyValue("--dim");
        c.fillText(layer, this.left - 7, y + this.cell / 2);
      }
      for (let i = 0; i < width; i++) {
        c.fillStyle = experts[i] ? colour[kindOf(experts[i])] : colour.none;
        c.beginPath();
        c.roundRect(this.left + i * this.cell, y, this.cell - gap, this.cell - gap, this.cell > 8 ? 3 : 1);
        c.fill();
      }
    });
  }
}
