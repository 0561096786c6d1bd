// A small line chart in SVG: axes with round ticks, a crosshair that reads values, no dependencies.

import { el, svg } from "./core.js";

const WIDTH = 640;
const HEIGHT = 240;
const EDGE = { left: 52, right: 14, top: 12, bottom: 28 };

export function ticks(low, high, wanted = 5) {
  if (!(high > low)) return [low];
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, position) => (first + position) * step);
}

export function readable(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 10000) return value.toLocaleString("en-US", { notation: "compact", maximumFractionDigits: 1 });
  if (size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

export class Chart extends HTMLElement {
  // series, and a baseline if there is one: {steps: [...], values: [...]}, both sorted by step.
  show({ title, series, baseline, lastStep, format = readable }) {
    this.series = series;
    this.baseline = baseline;
    this.format = format;
    const { steps, values } = series;
    const shown = [...values, ...(baseline?.values || [])];
    const low = Math.min(...shown);
    const high = Math.max(...shown);
    const margin = (high - low || Math.abs(high) || 1) * 0.06;
    this.domain = { x: [0, Math.max(lastStep, steps.at(-1), 1)], y: [low - margin, high + margin] };
    const figure = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": this.spoken(title) });
    figure.append(...this.axes(), ...this.line(), ...this.crosshair());
    figure.addEventListener("pointermove", (event) => this.point(event, figure));
    figure.addEventListener("pointerleave", () => this.marker.setAttribute("visibility", "hidden"));
    this.reading = el("span", { class: "la-reading" }, format(values.at(-1)));
    this.replaceChildren(el("div", { class: "la-chart-top" }, el("h3", {}, title), this.reading), figure);
  }

  spoken(title) {
    const { steps, values } = this.series;
    const untrained = this.baseline ? `; untrained ${this.format(this.baseline.values.at(-1))}` : "";
    return `${title}: from ${this.format(values[0])} at step ${steps[0]} to ${this.format(values.at(-1))} at step ${steps.at(-1)}${untrained}`;
  }

  x(step) {
    const [low, high] = this.domain.x;
    return EDGE.left + ((step - low) / (high - low)) * (WIDTH - EDGE.left - EDGE.right);
  }

  y(value) {
    const [low, high] = this.domain.y;
    return HEIGHT - EDGE.bottom - ((value - low) / (high - low)) * (HEIGHT - EDGE.top - EDGE.bottom);
  }

  axes() {
    const across = ticks(...this.domain.y).flatMap((value) => [
      svg("line", { class: "la-rule", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: this.y(value), y2: this.y(value) }),
      svg("text", { class: "la-tick", x: EDGE.left - 8, y: this.y(value) + 4, "text-anchor": "end" }, this.format(value)),
    ]);
    const along = ticks(...this.domain.x, 5).map((step) =>
      svg("text", { class: "la-tick", x: this.x(step), y: HEIGHT - 8, "text-anchor": "middle" }, readable(step)),
    );
    return [...across, ...along];
  }

  line() {
    const { steps, values } = this.series;
    const points = steps.map((step, position) => `${this.x(step).toFixed(1)},${this.y(values[position]).toFixed(1)}`);
    const parts = [...this.reference(), svg("polyline", { class: "la-line", points: points.join(" ") })];
    if (steps.length <= 40) {
      parts.push(...steps.map((step, i) => svg("circle", { class: "la-dot", cx: this.x(step), cy: this.y(values[i]), r: 3 })));
    }
    return parts;
  }

  // The baseline's newest value, right across: it is measured once and does not train.
  reference() {
    if (!this.baseline) return [];
    const y = this.y(this.baseline.values.at(-1));
    const note = svg("text", { class: "la-tick", x: WIDTH - EDGE.right, y: y - 4, "text-anchor": "end" }, "untrained");
    return [svg("line", { class: "la-cross", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y, y2: y }), note];
  }

  crosshair() {
    this.rule = svg("line", { class: "la-cross", y1: EDGE.top, y2: HEIGHT - EDGE.bottom });
    this.knob = svg("circle", { class: "la-knob", r: 4.5 });
    this.marker = svg("g", { visibility: "hidden" }, this.rule, this.knob);
    return [this.marker];
  }

  point(event, figure) {
    const box = figure.getBoundingClientRect();
    const reach = (((event.clientX - box.left) / box.width) * WIDTH - EDGE.left) / (WIDTH - EDGE.left - EDGE.right);
    const { steps, values } = this.series;
    const wanted = reach * this.domain.x[1];
    const nearest = steps.reduce((best, step, i) => (Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? i : best), 0);
    const [x, y] = [this.x(steps[nearest]), this.y(values[nearest])];
    this.rule.setAttribute("x1", x);
    this.rule.setAttribute("x2", x);
    this.knob.setAttribute("cx", x);
    this.knob.setAttribute("cy", y);
    this.marker.setAttribute("visibility", "visible");
    this.reading.textContent = `${this.format(values[nearest])} at step ${readable(steps[nearest])}`;
  }
}

customElements.define("la-chart", Chart);
