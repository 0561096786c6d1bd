// The Label tab: one picture, one key. Answers are shown at once and written behind; undo takes them back.

import { api, count, el, emptyState, operationId, Panel, plural, query, store, thumbUrl } from "./core.js";

const QUEUE = 12;
const REFILL_BELOW = 5;
const RETRY_MS = 2000;

class Labeller extends Panel {
  connected(signal) {
    document.addEventListener("keydown", (event) => this.onKey(event), { signal });
    store.addEventListener("wanted", () => this.guard(() => this.showWanted()), { signal });
    window.addEventListener("beforeunload", (event) => this.unsaved.length && event.preventDefault(), { signal });
    this.unsaved = [];
  }

  async show(index) {
    this.index = index;
    this.queue = [];
    this.skipped = [];
    this.history = [];
    this.build();
    this.showProgress(await api(`/v1/labels?${query({ index: index.name })}`));
    await this.refill();
    await this.showWanted();
    this.showCurrent();
  }

  build() {
    this.picture = el("div", { class: "la-picture" });
    this.about = el("div", { class: "la-about", "aria-live": "polite" });
    this.next = el("div", { class: "la-strip", "aria-hidden": "true" });
    const skip = el("button", { class: "la-button", onclick: () => this.skip() }, "Skip", el("kbd", {}, "S"));
    this.undoButton = el("button", { class: "la-button", onclick: () => this.undo() }, "Undo", el("kbd", {}, "Z"));
    this.saving = el("span", { class: "la-notice" });
    const actions = el("div", { class: "la-actions" }, skip, this.undoButton, this.saving);
    this.classes = el("ol", { class: "la-classes" });
    this.newName = el("input", { class: "la-input", maxlength: 100, placeholder: "New class", "aria-label": "Name of a new class" });
    const form = el("form", { class: "la-new", onsubmit: (event) => this.create(event) }, this.newName, el("button", { class: "la-button" }, "Add"));
    this.summary = el("p", { class: "la-notice" });
    this.accuracy = el("p", { class: "la-notice" });
    const work = el("section", { class: "la-work" }, this.about, this.picture, actions, this.next);
    const side = el("aside", { class: "la-side la-wide" }, el("h2", {}, "Classes"), this.summary, this.classes, form, this.accuracy);
    this.body.replaceChildren(el("div", { class: "la-columns la-labelling" }, work, side));
  }

  // --- the queue of pictures -------------------------------------------------------------------

  async refill() {
    if (this.refilling) return;
    this.refilling = true;
    try {
      const exclude = [...this.skipped, ...this.queue.map((item) => item.id), ...this.unsaved.map((item) => item.id)].slice(-500);
      const body = await api(`/v1/suggest?${query({ index: this.index.name, n: QUEUE, exclude: exclude.join(",") })}`);
      const known = new Set([...exclude, ...this.queue.map((item) => item.id)]);
      this.queue.push(...body.pictures.filter((item) => !known.has(item.id)));
      this.accuracy.textContent = body.accuracy ? `Accuracy so far: ${body.accuracy}` : "";
    } finally {
      this.refilling = false;
    }
  }

  async showWanted() {
    const id = store.wantedPicture;
    if (id === undefined || !this.queue) return;
    store.wantedPicture = undefined;
    const meta = await api(`/v1/pictures/${encodeURIComponent(this.index.name)}/${id}`);
    this.queue = [{ id, name: meta.name, reason: "chosen by you", source: "search" }, ...this.queue.filter((item) => item.id !== id)];
    this.showCurrent();
  }

  get current() {
    return this.queue[0];
  }

  showCurrent() {
    const { current } = this;
    if (!current) {
      this.about.replaceChildren();
      this.picture.replaceChildren(emptyState("Nothing left to label", "Every picture is labelled or skipped. Undo a skip by reloading the page, or train in the Classify tab."));
      this.next.replaceChildren();
      return;
    }
    const image = el("img", { src: thumbUrl(this.index, current.id), alt: `Picture to label: ${current.name}`, draggable: "false" });
    this.picture.replaceChildren(image);
    this.about.replaceChildren(this.badge(current), el("span", { class: "la-name", dir: "auto" }, current.name));
    const coming = this.queue.slice(1, 9).map((item) => el("img", { src: thumbUrl(this.index, item.id), alt: "" }));
    this.next.replaceChildren(...coming);
    this.markGuess(current.guess);
  }

  badge({ source, reason }) {
    if (source !== "audit") return el("span", { class: "la-chip" }, reason);
    const why = "Picked at random. Only such pictures measure the classifier's accuracy honestly.";
    return el("span", { class: "la-chip la-audit", title: why }, "Audit");
  }

  // --- answers ---------------------------------------------------------------------------------

  answer(label) {
    const { current } = this;
    if (!current) return;
    const event = { op_id: operationId(), id: current.id, label, source: current.source };
    this.unsaved.push(event);
    this.history.push({ ...event, picture: current });
    this.counted(label);
    this.advance();
    this.save();
  }

  advance() {
    this.queue.shift();
    this.showCurrent();
    if (this.queue.length < REFILL_BELOW) {
      this.guard(async () => {
        const wasEmpty = !this.current;
        await this.refill();
        if (wasEmpty) this.showCurrent();
      });
    }
  }

  skip() {
    if (!this.current) return;
    this.skipped.push(this.current.id);
    this.history.push({ skipped: true, picture: this.current });
    this.advance();
  }

  // Write-behind: one batch in flight; a failed batch is sent again with the same operation ids.
  async save() {
    if (this.isSaving) return this.isSaving;
    this.isSaving = this.saveAll();
    await this.isSaving;
    this.isSaving = null;
    return undefined;
  }

  async saveAll() {
    while (this.unsaved.length) {
      const batch = this.unsaved.slice(0, 100);
      this.showSaving();
      try {
        const progress = await api("/v1/labels", { method: "POST", json: { index: this.index.name, events: batch } });
        this.unsaved.splice(0, batch.length);
        this.clearError();
        if (!this.unsaved.length) this.showProgress(progress);
        store.labelsChanged();
      } catch (error) {
        this.fail(error);
        await new Promise((resume) => setTimeout(resume, RETRY_MS));
        if (!this.isConnected) return;
      }
    }
    this.showSaving();
  }

  showSaving() {
    this.saving.textContent = this.unsaved.length ? `saving ${this.unsaved.length}…` : "saved";
  }

  async undo() {
    const last = this.history.pop();
    if (last && last.skipped) {
      this.skipped.pop();
      this.queue.unshift(last.picture);
      this.showCurrent();
      return;
    }
    await this.save();
    await this.guard(async () => {
      const body = await api("/v1/labels/undo", { method: "POST", json: { index: this.index.name } });
      this.showProgress(body);
      store.labelsChanged();
      // A renaming is taken back as a whole and belongs to no single picture.
      if (body.undone.length !== 1) return;
      const [undone] = body.undone;
      const picture = last && last.picture.id === undone.id ? last.picture : { ...undone, reason: "taken back", source: "search" };
      this.queue = [picture, ...this.queue.filter((item) => item.id !== picture.id)];
      this.showCurrent();
    });
  }

  // --- classes ---------------------------------------------------------------------------------

  showProgress(progress) {
    this.progress = progress;
    const most = Math.max(1, ...progress.classes.map((item) => item.count));
    this.classes.replaceChildren(...progress.classes.map((item, position) => this.classRow(item, position, most)));
    this.undoButton.disabled = !progress.labelled && !this.history.length;
    this.summary.textContent = progress.classes.length
      ? `${plural(progress.labelled, "label")}, ${count(progress.audited)} of them audit. Press a number to label.`
      : "Name at least two classes below, then label with the number keys.";
    this.markGuess(this.current && this.current.guess);
  }

  classRow(item, position, most) {
    const key = position < 9 ? el("kbd", {}, String(position + 1)) : el("span", { class: "la-nokey" });
    const bar = el("i", { class: "la-share" });
    bar.style.width = `${(100 * item.count) / most}%`;
    const pick = el(
      "button",
      { class: "la-class", type: "button", "data-class": item.name, onclick: () => this.answer(item.name) },
      key,
      el("span", { class: "la-name", dir: "auto" }, item.name),
      el("span", { class: "la-count" }, count(item.count)),
      bar,
    );
    const rename = el("button", { class: "la-icon", type: "button", "aria-label": `Rename ${item.name}`, title: "Rename", onclick: () => this.rename(item) }, "✎");
    return el("li", {}, pick, rename);
  }

  // Shown at once; the server's own count replaces it when the batch is saved.
  counted(label) {
    const item = this.progress.classes.find((entry) => entry.name === label);
    item.count += 1;
    this.progress.labelled += 1;
    this.showProgress(this.progress);
  }

  markGuess(guess) {
    for (const button of this.classes.querySelectorAll(".la-class")) {
      button.classList.toggle("la-guess", guess !== undefined && guess !== null && button.dataset.class === guess);
    }
  }

  create(event) {
    event.preventDefault();
    const name = this.newName.value.trim();
    if (!name) return;
    this.guard(async () => {
      this.showProgress(await api("/v1/classes", { method: "POST", json: { index: this.index.name, name } }));
      this.newName.value = "";
      this.clearError();
    });
  }

  rename(item) {
    const input = el("input", { class: "la-input", maxlength: 100, "aria-label": `New name of ${item.name}` });
    input.value = item.name;
    const done = (event) => {
      event.preventDefault();
      this.guard(async () => {
        const json = { index: this.index.name, name: item.name, new_name: input.value.trim() };
        this.showProgress(await api("/v1/classes/rename", { method: "POST", json }));
        store.labelsChanged();
      });
    };
    const form = el("form", { class: "la-new", onsubmit: done }, input, el("button", { class: "la-button" }, "Rename"));
    input.addEventListener("keydown", (event) => event.key === "Escape" && this.showProgress(this.progress));
    const row = [...this.classes.children][this.progress.classes.indexOf(item)];
    row.replaceChildren(form);
    input.select();
  }

  onKey(event) {
    if (!this.isShown || !this.progress || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select, [contenteditable]")) return;
    const key = event.key.toLowerCase();
    if (/^[1-9]$/.test(key)) {
      const item = this.progress.classes[Number(key) - 1];
      if (item && !event.repeat) this.answer(item.name);
    } else if (key === "s") this.skip();
    else if (key === "z" && !event.repeat) this.undo();
    else return;
    event.preventDefault();
  }
}

customElements.define("la-label", Labeller);
