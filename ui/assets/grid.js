// A grid of pictures: lazy thumbnails, one focus stop, arrow keys, spoken alternatives.
//
// grid.show(index, items) with items {id, name, badge?, detail?, spoken?}; picks arrive as "pick" events.

import { el, thumbUrl } from "./core.js";

const STEPS = { ArrowRight: 1, ArrowLeft: -1 };

class PictureGrid extends HTMLElement {
  connectedCallback() {
    this.setAttribute("role", "list");
    this.addEventListener("keydown", (event) => this.onKey(event));
    this.addEventListener("focusin", (event) => this.roveTo(event.target.closest(".la-tile")));
    this.addEventListener("click", (event) => this.onClick(event));
  }

  show(index, items) {
    this.items = items;
    const tiles = items.map((item, position) => this.tile(index, item, position));
    this.replaceChildren(...tiles);
  }

  tile(index, item, position) {
    const image = el("img", {
      src: thumbUrl(index, item.id),
      alt: "",
      loading: position < 24 ? "eager" : "lazy",
      decoding: "async",
      draggable: "false",
      onerror: (event) => event.target.closest(".la-tile").classList.add("la-missing"),
    });
    const caption = el(
      "span",
      { class: "la-caption" },
      el("span", { class: "la-badge" }, item.badge || ""),
      el("span", { class: "la-detail", dir: "auto" }, item.detail || item.name),
    );
    const button = el(
      "button",
      {
        class: "la-tile",
        type: "button",
        title: item.name,
        tabindex: position === 0 ? 0 : -1,
        "data-id": item.id,
        "aria-label": item.spoken || item.name,
      },
      el("span", { class: "la-frame" }, image),
      caption,
    );
    return el("div", { role: "listitem" }, button);
  }

  get tiles() {
    return [...this.querySelectorAll(".la-tile")];
  }

  roveTo(tile) {
    if (!tile) return;
    for (const other of this.querySelectorAll('.la-tile[tabindex="0"]')) other.tabIndex = -1;
    tile.tabIndex = 0;
  }

  onClick(event) {
    const tile = event.target.closest(".la-tile");
    if (!tile) return;
    const item = this.items[this.tiles.indexOf(tile)];
    this.dispatchEvent(new CustomEvent("pick", { detail: item }));
  }

  columns(tiles) {
    const top = tiles[0].getBoundingClientRect().top;
    const wrapped = tiles.findIndex((tile) => tile.getBoundingClientRect().top > top + 1);
    return wrapped === -1 ? tiles.length : wrapped;
  }

  onKey(event) {
    const { tiles } = this;
    const here = tiles.indexOf(document.activeElement);
    if (here === -1 || event.altKey || event.ctrlKey || event.metaKey) return;
    const target = this.target(event.key, here, tiles);
    if (target === null) return;
    event.preventDefault();
    const tile = tiles[Math.min(Math.max(target, 0), tiles.length - 1)];
    tile.focus();
  }

  target(key, here, tiles) {
    if (key in STEPS) return here + STEPS[key];
    if (key === "ArrowDown") return here + this.columns(tiles);
    if (key === "ArrowUp") return here - this.columns(tiles);
    if (key === "Home") return 0;
    if (key === "End") return tiles.length - 1;
    return null;
  }
}

customElements.define("la-grid", PictureGrid);
