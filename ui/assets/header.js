// The strip at the top: the product's name, which index is open, and what it is made of.

import { count, el, store } from "./core.js";

const FOLLOW_MS = 30_000;

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
    this.problem = el("p", { class: "la-older", role: "status", hidden: true });
    this.replaceChildren(name, this.choice, this.problem);
    const { signal } = this.lifetime;
    for (const event of ["change", "facts"]) store.addEventListener(event, () => this.refresh(), { signal });
    store.ready.then(() => this.refresh());
    this.timer = setInterval(() => document.hidden || store.follow(), FOLLOW_MS);
    document.addEventListener("visibilitychange", () => document.hidden || store.follow(), { signal });
  }

  disconnectedCallback() {
    this.lifetime.abort();
    clearInterval(this.timer);
  }

  refresh() {
    const { index, indexes } = store;
    this.choice.hidden = !index;
    if (!index) return;
    this.select.replaceChildren(...indexes.map((item) => el("option", { value: item.name }, item.name)));
    this.select.value = index.name;
    const facts = [`${count(index.pictures)} pictures`, index.version, `encoder ${index.encoder_id.slice(0, 8)}`];
    this.facts.replaceChildren(...facts.map((fact) => el("span", {}, fact)));
    // Why a newer version does not answer. Nothing is broken: the older one does.
    const problem = index.problem || "";
    this.problem.hidden = !problem;
    if (this.problem.textContent !== problem) this.problem.textContent = problem; // read aloud once
  }
}

customElements.define("la-header", Header);
