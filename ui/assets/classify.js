// The Classify tab: train on the labels, see an honest accuracy, review doubtful pictures, export.

import { api, count, el, emptyState, Panel, percent, plural, query, store } from "./core.js";

const POLL_MS = 700;
const PAGE = 48;

class Classify extends Panel {
  connected(signal) {
    store.addEventListener("labels", () => this.index && this.guard(() => this.load()), { signal });
    signal.addEventListener("abort", () => window.clearTimeout(this.timer));
  }

  show(index) {
    this.index = index;
    this.label = null;
    this.build();
    return this.load();
  }

  build() {
    this.train = el("button", { class: "la-button la-primary", onclick: () => this.guard(() => this.start()) }, "Train and predict");
    this.state = el("span", { class: "la-notice", "aria-live": "polite" });
    this.cards = el("div", { class: "la-cards" });
    this.shares = el("div", { class: "la-shares" });
    this.exports = el("div", { class: "la-actions" }, ["csv", "parquet"].map((format) => this.exportLink(format)));
    this.heading = el("h2", {});
    this.notice = el("p", { class: "la-notice" });
    this.more = el("button", { class: "la-button", onclick: () => this.guard(() => this.review(this.shown.length)) }, "Show more");
    this.grid = el("la-grid", { "aria-label": "Pictures to review", onpick: (event) => store.showInLabeller(event.detail.id) });
    this.results = el("div", { class: "la-columns" },
      el("aside", { class: "la-side" }, el("h2", {}, "Predicted classes"), this.shares, this.exports),
      el("section", { class: "la-main" }, el("div", { class: "la-top" }, el("div", {}, this.heading, this.notice)), this.grid, this.more));
    this.body.replaceChildren(el("div", { class: "la-run-top" }, this.train, this.state), this.cards, this.results);
    this.results.hidden = true;
  }

  exportLink(format) {
    const address = `/v1/export?${query({ index: this.index.name, format })}`;
    return el("a", { class: "la-button", href: address, download: "", "data-format": format }, `Export ${format === "csv" ? "CSV" : "Parquet"}`);
  }

  async load() {
    const status = await api(`/v1/classify?${query({ index: this.index.name })}`);
    this.showStatus(status);
    if (status.state === "running") this.timer = window.setTimeout(() => this.guard(() => this.load()), POLL_MS);
  }

  async start() {
    this.clearError();
    this.showStatus(await api("/v1/classify", { method: "POST", json: { index: this.index.name } }));
    this.timer = window.setTimeout(() => this.guard(() => this.load()), POLL_MS / 3);
  }

  showStatus(status) {
    const { state, classifier } = status;
    this.train.disabled = state === "running" || !status.can_train;
    this.state.textContent = status.message;
    if (state === "failed") this.banner.replaceChildren(el("span", {}, status.error)), (this.banner.hidden = false);
    this.cards.replaceChildren(...(classifier ? this.summary(classifier) : [this.invitation(status)]));
    this.results.hidden = !classifier;
    if (!classifier || classifier.id === this.shownClassifier) return;
    this.shownClassifier = classifier.id;
    this.classifier = classifier;
    this.showShares();
    this.guard(() => this.review(0));
  }

  invitation(status) {
    const text = status.can_train ? "Your labels are ready: train a classifier, and it predicts every picture of the corpus." : "Name two or more classes and label a few pictures of each. Three of each is a good start.";
    const go = el("button", { class: "la-button", onclick: () => store.showInLabeller(undefined) }, "Go to Label");
    return emptyState("No classifier yet", text, go);
  }

  summary({ accuracy, accuracy_text, num_labels, num_classes, head, rows, encoder_id }) {
    return [
      this.accuracyCard(accuracy, accuracy_text),
      card("Learned from", plural(num_labels, "label"), `${plural(num_classes, "class")}, by ${head}`),
      card("Predicted", plural(rows, "picture"), `encoder ${encoder_id.slice(0, 8)}`),
    ];
  }

  accuracyCard(accuracy, text) {
    if (!accuracy) {
      return card("Accuracy so far", "not known yet", text);
    }
    const bar = el("span", { class: "la-interval", "aria-hidden": "true" }, el("i"), el("b"));
    bar.children[0].style.left = `${100 * accuracy.low}%`;
    bar.children[0].style.width = `${100 * (accuracy.high - accuracy.low)}%`;
    bar.children[1].style.left = `${100 * accuracy.estimate}%`;
    const range = `95 % interval ${percent(accuracy.low)} to ${percent(accuracy.high)}, from ${plural(accuracy.n, "audit picture")}`;
    return card("Accuracy so far", percent(accuracy.estimate), range, bar);
  }

  showShares() {
    const { classes, rows } = this.classifier;
    const most = Math.max(1, ...classes.map((item) => item.predicted));
    const row = (label, name, number, width) => {
      const bar = el("i", { class: "la-share" });
      bar.style.width = `${width}%`;
      return el("button", { class: "la-class", type: "button", "aria-pressed": String(this.label === label), onclick: () => this.filter(label) },
        el("span", { class: "la-name", dir: "auto" }, name), el("span", { class: "la-count" }, count(number)), bar);
    };
    this.shares.replaceChildren(
      row(null, "All classes", rows, 0),
      ...classes.map((item) => row(item.name, item.name, item.predicted, (100 * item.predicted) / most)),
    );
  }

  filter(label) {
    this.label = label;
    this.showShares();
    this.guard(() => this.review(0));
  }

  async review(offset) {
    const parameters = { label: this.label, offset, n: PAGE };
    const body = await api(`/v1/predictions/${encodeURIComponent(this.index.name)}?${query(parameters)}`);
    this.shown = offset ? [...this.shown, ...body.pictures] : body.pictures;
    this.heading.textContent = this.label === null ? "Least certain first" : "Least certain first in this class";
    this.notice.textContent = `${count(this.shown.length)} of ${plural(body.total, "picture")}. Pick one to correct its label.`;
    this.more.hidden = this.shown.length >= body.total;
    this.grid.show(this.index, this.shown.map((item) => ({
      ...item,
      badge: percent(item.confidence),
      detail: item.label,
      spoken: `${item.name}, predicted ${item.label} with confidence ${percent(item.confidence)}. Correct it`,
    })));
  }
}

function card(title, value, detail, ...rest) {
  return el("article", { class: "la-card" }, el("h3", {}, title), el("p", { class: "la-value" }, value), ...rest, el("p", { class: "la-notice" }, detail));
}

customElements.define("la-classify", Classify);
