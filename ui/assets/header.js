// The strip at the top: the product's name, which index is open, and what it is made of.

import { count, el, store } from "./core.js";

class Header extends HTMLElement {
  connectedCallback() {
    this.lifetime = new AbortController();
    this.select = el("select", {
      "aria-label": "Index",
      class: "la-select",
      onchange: (event) => store.choose(event.target.value),
    });
    this.facts = el("span", { class: "la-facts" });
    const mark = el("span", { class: "la-mark", "aria-hidden": "true" }, el("i"), el("i"));
    const name = el("h1", {}, mark, "lookalike");
    this.choice = el("div", { class: "la-choice" }, this.select, this.facts);
    this.replaceChildren(name, this.choice);
    store.addEventListener("change", () => this.refresh(), { signal: this.lifetime.signal });
    store.ready.then(() => this.refresh());
  }

  disconnectedCallback() {
    this.lifetime.abort();
  }

  refresh() {
    const { index, indexes } = store;
    this.choice.hidden = !index;
    if (!index) return;
    this.select.replaceChildren(...indexes.map((item) => el("option", { value: item.name }, item.name)));
    this.select.value = index.name;
    const facts = [`${count(index.pictures)} pictures`, index.version, `encoder ${index.encoder_id.slice(0, 8)}`];
    this.facts.replaceChildren(...facts.map((fact) => el("span", {}, fact)));
  }
}

customElements.define("la-header", Header);
