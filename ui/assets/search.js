// The Search tab: a picture dropped, pasted, chosen or picked from the corpus, and what is nearest to it.

import { api, count, el, emptyState, Panel, plural, query, store, thumbUrl, writeUrl } from "./core.js";

const DEFAULT_K = 24;

class Search extends Panel {
  connected(signal) {
    window.addEventListener("popstate", () => this.followUrl(), { signal });
    document.addEventListener("paste", (event) => this.onPaste(event), { signal });
  }

  show(index) {
    this.index = index;
    this.asked = null;
    this.seed = 1;
    this.build();
    return this.followUrl();
  }

  build() {
    this.file = el("input", {
      type: "file",
      accept: "image/*",
      class: "la-visually-hidden",
      "aria-label": "Choose a picture to search with",
      onchange: (event) => this.searchFile(event.target.files[0]),
    });
    this.preview = el("span", { class: "la-preview" });
    this.dropTitle = el("b", {}, "Drop a picture here");
    this.drop = el(
      "label",
      { class: "la-drop" },
      this.file,
      this.preview,
      el("span", { class: "la-drop-text" }, this.dropTitle, el("span", {}, "or paste one, or click to choose a file")),
    );
    this.wireDrop();
    this.k = el("input", { type: "range", min: 6, max: 96, step: 6, value: DEFAULT_K, onchange: () => this.repeat(), oninput: () => this.showK() });
    this.kText = el("output", {}, String(DEFAULT_K));
    this.shuffle = el("button", { class: "la-button", onclick: () => this.browse(this.seed + 1) }, "Show others");
    const side = el(
      "aside",
      { class: "la-side" },
      this.drop,
      el("label", { class: "la-field" }, el("span", {}, "Results ", this.kText), this.k),
    );
    this.heading = el("h2", {});
    this.notice = el("p", { class: "la-notice", "aria-live": "polite" });
    this.grid = el("la-grid", { "aria-label": "Pictures", onpick: (event) => this.searchId(event.detail.id, { push: true }) });
    const top = el("div", { class: "la-top" }, el("div", {}, this.heading, this.notice), this.shuffle);
    const main = el("section", { class: "la-main" }, top, this.grid);
    this.body.replaceChildren(el("div", { class: "la-columns" }, side, main));
  }

  wireDrop() {
    const over = (event) => {
      event.preventDefault();
      this.drop.classList.add("la-over");
    };
    this.drop.addEventListener("dragenter", over);
    this.drop.addEventListener("dragover", over);
    this.drop.addEventListener("dragleave", () => this.drop.classList.remove("la-over"));
    this.drop.addEventListener("drop", (event) => {
      event.preventDefault();
      this.drop.classList.remove("la-over");
      this.searchFile(event.dataTransfer.files[0]);
    });
  }

  onPaste(event) {
    if (!this.isShown || !this.drop) return;
    const file = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
    if (file) this.searchFile(file);
  }

  showK() {
    this.kText.textContent = this.k.value;
  }

  repeat() {
    if (this.asked) this.asked();
    else this.browse(this.seed);
  }

  followUrl() {
    const id = new URL(window.location.href).searchParams.get("id");
    if (id !== null && /^\d+$/.test(id)) return this.searchId(Number(id));
    return this.browse(this.seed);
  }

  browse(seed) {
    this.seed = seed;
    this.asked = null;
    writeUrl({ id: null });
    this.preview.replaceChildren();
    this.dropTitle.textContent = "Drop a picture here";
    this.drop.classList.remove("la-filled");
    return this.run(async (signal) => {
      const name = encodeURIComponent(this.index.name);
      const body = await api(`/v1/pictures/${name}?${query({ n: this.k.value, seed })}`, { signal });
      this.heading.textContent = "Browse the corpus";
      this.shuffle.textContent = "Show others";
      this.notice.textContent = `${count(this.index.pictures)} pictures. Pick one to see what is like it.`;
      this.grid.show(this.index, body.pictures.map((item) => ({ ...item, spoken: `${item.name}. Search for pictures like this` })));
      if (!body.pictures.length) this.grid.replaceChildren(emptyState("This index is empty", "It holds no readable picture. Scan a folder with pictures, embed and index it again."));
    });
  }

  searchId(id, { push = false } = {}) {
    this.asked = () => this.searchId(id);
    writeUrl({ index: this.index.name, id }, { push });
    this.showPreview(thumbUrl(this.index, id));
    return this.run(async (signal) => {
      const json = { index: this.index.name, id, k: Number(this.k.value) };
      this.showHits(await api("/v1/search", { method: "POST", json, signal }), "Pictures like this one");
    });
  }

  searchFile(file) {
    if (!file) return undefined;
    this.asked = () => this.searchFile(file);
    writeUrl({ id: null });
    if (this.previewUrl) URL.revokeObjectURL(this.previewUrl);
    this.previewUrl = URL.createObjectURL(file);
    this.showPreview(this.previewUrl);
    const form = new FormData();
    form.set("index", this.index.name);
    form.set("k", this.k.value);
    form.set("picture", file);
    this.file.value = "";
    return this.run(async (signal) => {
      this.showHits(await api("/v1/search", { method: "POST", form, signal }), "Pictures like yours");
    });
  }

  showPreview(url) {
    const image = el("img", { src: url, alt: "The picture searched with", onerror: () => this.preview.replaceChildren() });
    this.preview.replaceChildren(image);
    this.dropTitle.textContent = "Drop another picture";
    this.drop.classList.add("la-filled");
  }

  // One search at a time: a newer one cancels the older, so a slow answer never overwrites a fresh one.
  async run(work) {
    if (this.running) this.running.abort();
    this.running = new AbortController();
    const { signal } = this.running;
    this.clearError();
    this.grid.setAttribute("aria-busy", "true");
    await this.guard(() => work(signal));
    if (!signal.aborted) this.grid.removeAttribute("aria-busy");
  }

  showHits(body, heading) {
    this.heading.textContent = heading;
    this.shuffle.textContent = "Back to browsing";
    const short = body.returned < body.asked ? ` of ${body.asked} asked` : "";
    const changed = body.flags.includes("changed_since_index")
      ? ". Some files have changed since they were indexed: scan, embed and index again"
      : "";
    this.notice.textContent = `${plural(body.returned, "picture")}${short} in ${body.took_ms.toFixed(body.took_ms < 10 ? 1 : 0)} ms${changed}`;
    const items = body.hits.map((hit) => ({
      ...hit,
      badge: `${hit.rank}`,
      detail: hit.score.toFixed(3),
      spoken: `Rank ${hit.rank}, score ${hit.score.toFixed(3)}, ${hit.name}. Search for pictures like this`,
    }));
    this.grid.show(this.index, items);
  }
}

customElements.define("la-search", Search);
