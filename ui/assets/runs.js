// The Runs tab: curves, progress and health of pretraining runs, polled while one is running.

import { api, count, duration, el, emptyState, Panel, percent } from "./core.js";
import "./chart.js";
import { readable } from "./chart.js";

const POLL_MS = 2000;
// Curves in this order; any other number of a run shows as a figure only.
const CURVES = { loss: "Loss", knn: "kNN accuracy", probe: "Probe accuracy", effective_rank: "Effective rank", lr: "Learning rate" };

// A share's interval, what it has to beat, and how many labels it was measured with.
function honesty(figure) {
  const parts = [];
  if (figure.low !== undefined) parts.push(`95 %: ${percent(figure.low)} to ${percent(figure.high)}`);
  for (const { title, value } of figure.beside || []) parts.push(`${title} ${percent(value)}`);
  if (figure.measured) parts.push(figure.measured);
  return parts.map((part) => el("dd", { class: "la-why" }, part));
}

class Runs extends Panel {
  connected(signal) {
    this.timer = window.setInterval(() => this.poll(), POLL_MS);
    signal.addEventListener("abort", () => window.clearInterval(this.timer));
  }

  // Runs exist before the first index does, so this panel does not wait for one.
  refresh() {
    if (this.isConnected && !this.select) this.guard(() => this.list());
  }

  async list() {
    const { runs } = await api("/v1/runs");
    if (!runs.length) {
      this.body.replaceChildren(
        emptyState("No pretraining run yet", "Start one in a terminal; its curves appear here while it trains and stay when it is done:",
          el("pre", { tabindex: 0 }, "lookalike pretrain simclr-small --corpus mine --name enc1"),
          el("button", { class: "la-button", onclick: () => this.guard(() => this.list()) }, "Look again")),
      );
      return;
    }
    this.select = el("select", { class: "la-select", "aria-label": "Run", onchange: () => this.guard(() => this.load()) },
      runs.map((run) => el("option", { value: run.name }, run.name)));
    this.state = el("span", { class: "la-state" });
    this.about = el("span", { class: "la-notice" });
    this.bar = el("div", { class: "la-progress", role: "progressbar", "aria-label": "Training progress", "aria-valuemin": 0, "aria-valuemax": 100 }, el("i"));
    this.alert = el("p", { class: "la-banner", role: "alert" });
    this.message = el("p", { class: "la-notice", "aria-live": "polite" });
    this.history = el("p", { class: "la-notice la-history" });
    this.figures = el("dl", { class: "la-figures" });
    this.charts = el("div", { class: "la-charts" });
    this.chartOf = {};
    const top = el("div", { class: "la-run-top" }, this.select, this.state, this.about);
    this.body.replaceChildren(top, this.bar, this.alert, this.message, this.history, this.charts, this.figures);
    await this.load();
  }

  async poll() {
    if (this.select && this.isShown && this.live) await this.guard(() => this.load());
  }

  async load() {
    const wanted = this.select.value;
    const run = await api(`/v1/runs/${encodeURIComponent(wanted)}/metrics`);
    if (run.name !== this.select.value) return;
    this.clearError();
    this.live = run.state === "running";
    this.state.textContent = run.state;
    this.state.dataset.state = run.state;
    this.showProgress(run);
    this.showFigures(run);
    this.showCharts(run);
  }

  showProgress(run) {
    const share = run.num_steps ? Math.min(1, run.step / run.num_steps) : 0;
    this.bar.firstChild.style.width = `${100 * share}%`;
    this.bar.setAttribute("aria-valuenow", Math.round(100 * share));
    const parts = [`step ${count(run.step)} of ${count(run.num_steps)}`, `epoch ${readable(run.epoch)}`, this.live ? `${duration(run.time_s)} so far` : `took ${duration(run.time_s)}`];
    if (this.live && share > 0.01) parts.push(`about ${duration((run.time_s * (1 - share)) / share)} to go`);
    this.about.textContent = parts.join(" · ");
    for (const [line, text] of [[this.alert, run.alert], [this.message, run.message], [this.history, run.history]]) {
      if (line.textContent !== text) line.textContent = text; // a screen reader reads an alert once
      line.hidden = !text;
    }
  }

  showFigures(run) {
    const figures = run.figures.map((figure) =>
      el("div", { class: "la-figure" }, el("dt", {}, figure.title), el("dd", {}, figure.is_share ? percent(figure.value) : readable(figure.value)), ...honesty(figure), el("dd", { class: "la-why" }, figure.why)),
    );
    this.figures.replaceChildren(...figures);
  }

  showCharts(run) {
    const names = Object.keys(CURVES).filter((name) => run.series[name]);
    const missing = names.filter((name) => !this.chartOf[name]);
    for (const name of missing) this.chartOf[name] = el("la-chart", { "data-curve": name });
    const shown = names.map((name) => this.chartOf[name]);
    const now = [...this.charts.children];
    if (shown.length !== now.length || shown.some((chart, position) => chart !== now[position])) this.charts.replaceChildren(...shown);
    for (const name of names) {
      const format = name === "knn" || name === "probe" ? percent : readable;
      const baseline = run.series[`${name}_random`];
      this.chartOf[name].show({ title: CURVES[name], series: run.series[name], baseline, lastStep: run.num_steps, format });
    }
    if (!names.length) this.charts.replaceChildren(emptyState("Waiting for the first numbers", "The run has started and writes its first numbers after its first steps."));
  }
}

customElements.define("la-runs", Runs);
