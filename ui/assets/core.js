// What every component shares: safe DOM building, calls to /v1, the chosen index, the error banner.
// Names and labels are hostile text: they reach the page through textContent and setAttribute alone.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children.flat());
  return node;
}

export class ApiError extends Error {}

const OFFLINE =
  "The lookalike server does not answer. Check that `lookalike ui` is still running, then try again.";

export async function api(path, { method = "GET", json, form, signal } = {}) {
  const request = { method, signal, headers: {}, credentials: "same-origin" };
  if (json !== undefined) {
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(json);
  }
  if (form) request.body = form;
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(OFFLINE);
  }
  if (response.status === 401) window.location.assign("/login");
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(body.error || `The server answered ${response.status}.`);
  return body;
}

export function query(parameters) {
  const pairs = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null);
  return new URLSearchParams(pairs.map(([name, value]) => [name, String(value)])).toString();
}

export function operationId() {
  // randomUUID exists in secure contexts only; a plain-http LAN address is not one.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const count = (number) => Number(number).toLocaleString("en-US");
export const plural = (number, noun) =>
  `${count(number)} ${number === 1 ? noun : noun.endsWith("s") ? `${noun}es` : `${noun}s`}`;
export const percent = (share) => `${(100 * share).toFixed(share >= 0.9995 || share === 0 ? 0 : 1)} %`;

export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// The chosen index, shared by all tabs and kept in the URL.
class Store extends EventTarget {
  constructor() {
    super();
    this.indexes = [];
    this.index = null;
    this.ready = this.load();
  }

  async load() {
    try {
      const body = await api("/v1/indexes");
      this.indexes = body.indexes;
      const wanted = new URL(window.location.href).searchParams.get("index") || body.default;
      this.index = this.indexes.find((item) => item.name === wanted) || this.indexes[0] || null;
      this.error = null;
    } catch (error) {
      this.error = error;
    }
    this.dispatchEvent(new Event("change"));
  }

  // Another version may be put in service while the page is open; what the panels show of it stays.
  async follow() {
    const body = await api("/v1/indexes").catch(() => null); // whoever asks for more says that it failed
    if (!body || !this.index) return;
    this.indexes = body.indexes;
    this.index = this.indexes.find((item) => item.name === this.index.name) || this.index;
    this.dispatchEvent(new Event("facts"));
  }

  choose(name) {
    this.index = this.indexes.find((item) => item.name === name) || this.index;
    writeUrl({ index: this.index && this.index.name, id: null });
    this.dispatchEvent(new Event("change"));
  }

  labelsChanged() {
    this.dispatchEvent(new Event("labels"));
  }

  showInLabeller(id) {
    this.wantedPicture = id;
    openTab("Label");
    this.dispatchEvent(new Event("wanted"));
  }
}

export const store = new Store();

export function writeUrl(changes, { push = false } = {}) {
  const url = new URL(window.location.href);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined) url.searchParams.delete(name);
    else url.searchParams.set(name, value);
  }
  if (url.href === window.location.href) return;
  window.history[push ? "pushState" : "replaceState"](null, "", url);
}

export function openTab(name) {
  const tabs = [...document.querySelectorAll('#la-tabs [role="tab"]')];
  const tab = tabs.find((item) => item.textContent.trim() === name);
  if (tab) tab.click();
}

export const thumbUrl = (index, id) =>
  `/v1/thumbs/${encodeURIComponent(index.name)}/${id}?v=${encodeURIComponent(index.thumbs_version)}`;

// A component: builds itself once per index, and says when it has nothing to work on.
export class Panel extends HTMLElement {
  connectedCallback() {
    this.lifetime = new AbortController();
    const { signal } = this.lifetime;
    this.banner = el("div", { class: "la-banner", role: "alert", hidden: true });
    this.body = el("div", { class: "la-body" });
    this.replaceChildren(this.banner, this.body);
    store.addEventListener("change", () => this.refresh(), { signal });
    this.connected(signal);
    store.ready.then(() => this.refresh());
  }

  disconnectedCallback() {
    this.lifetime.abort();
  }

  connected() {}

  get isShown() {
    return this.offsetParent !== null;
  }

  refresh() {
    if (!this.isConnected) return;
    this.clearError();
    if (store.error) this.fail(store.error);
    else if (!store.index) this.body.replaceChildren(firstSteps());
    else this.guard(() => this.show(store.index));
  }

  fail(error) {
    if (error.name === "AbortError") return;
    const close = el("button", { class: "la-icon", "aria-label": "Dismiss", onclick: () => this.clearError() }, "✕");
    const message = error instanceof ApiError ? error.message : `The page failed: ${error.message}. Reload it.`;
    this.banner.replaceChildren(el("span", {}, message), close);
    this.banner.hidden = false;
  }

  clearError() {
    this.banner.hidden = true;
  }

  async guard(work) {
    try {
      return await work();
    } catch (error) {
      this.fail(error);
      return undefined;
    }
  }
}

export function emptyState(title, text, ...rest) {
  return el("div", { class: "la-empty" }, el("h3", {}, title), el("p", {}, text), ...rest);
}

function firstSteps() {
  const commands = [
    "lookalike scan ~/Pictures --corpus mine",
    "lookalike pretrain simclr-small --corpus mine --name enc1",
    "lookalike embed --corpus mine --encoder enc1",
    "lookalike index --corpus mine --encoder enc1",
  ].join("\n");
  return emptyState(
    "No index yet",
    "Pictures become searchable once they are scanned, embedded and indexed. Run these four commands on your own folder, then reload this page:",
    el("pre", { tabindex: 0 }, commands),
    el("p", {}, "Or build the demo corpus in a few minutes: ", el("code", {}, "make demo")),
    el("button", { class: "la-button", onclick: () => window.location.reload() }, "Reload"),
  );
}
