/* The page's shared state: what is in the address (cipm.view), where every axis is zoomed (cipm.windows), and the glue
   that lets a Dash component be a plain object with `update(props)` and `destroy()`. No framework, no bundler. */
(function () {
  "use strict";
  const cipm = (window.cipm = window.cipm || {});

  /* ---------- small helpers ---------- */
  cipm.el = function (tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };

  cipm.bytes = function (count) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let index = 0;
    while (count >= 1000 && index < units.length - 1) { count /= 1000; index += 1; }
    return `${index && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[index]}`;
  };

  cipm.duration = function (seconds) {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 60) return `${whole} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
    return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  };

  cipm.number = function (value) {
    if (Number.isNaN(value)) return "missing (NaN)";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = size >= 1e-3 && size < 1e5 ? value.toPrecision(4) : value.toExponential(3);
    return text.replace("-", "\u2212");
  };

  /* The API's one error shape, or a sentence about the connection. */
  cipm.problem = async function (response) {
    if (!response) return { message: "The server cannot be reached.", fix: "Check that it is running, then try again." };
    try {
      const body = await response.json();
      if (body.error) return body.error;
    } catch (error) { if (!(error instanceof SyntaxError)) throw error; }
    return { message: `The server answered with status ${response.status}.`, fix: "Try again." };
  };

  /* Ask the API: what it answers as JSON, or its problem thrown. */
  cipm.ask = async function (method, address, body) {
    const response = await fetch(address, { method, headers: body ? { "Content-Type": "application/json" } : {},
      body: body ? JSON.stringify(body) : undefined }).catch(() => null);
    if (!response || !response.ok) throw await cipm.problem(response);
    const text = await response.text();
    return text ? JSON.parse(text) : null;
  };

  /* A link to another of our pages, which Dash shows without loading everything anew. */
  cipm.go = function (event, href) {
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    history.pushState({}, "", href);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    window.scrollTo(0, 0);
  };

  cipm.debounce = function (wait, action) {
    let timer = 0;
    return (...values) => { clearTimeout(timer); timer = setTimeout(() => action(...values), wait); };
  };

  cipm.setProps = function (id, props) {
    if (window.dash_clientside && window.dash_clientside.set_props) {
      window.dash_clientside.set_props(id, props);
    }
  };

  cipm.scheme = () =>
    document.documentElement.getAttribute("data-mantine-color-scheme") === "dark" ? "dark" : "light";

  cipm.onScheme = function (action) {
    const observer = new MutationObserver(action);
    observer.observe(document.documentElement, { attributeFilter: ["data-mantine-color-scheme"] });
    return () => observer.disconnect();
  };

  /* Colour of a module: golden-angle hues, so neighbouring ids differ; frontend/figures.py has the same rule. */
  cipm.moduleColour = function (module) {
    if (module < 0) return "transparent";
    const hue = (module * 137.508 + 250) % 360;
    const light = (cipm.scheme() === "dark" ? 0.72 : 0.62) + (module % 3 - 1) * 0.07;
    return `oklch(${light.toFixed(2)} 0.13 ${hue.toFixed(1)})`;
  };

  /* ---------- the address is the state of the view ---------- */
  /* What of the address the server renders, by page: a mark of the page, the store's id (frontend/ids.py), the names. */
  const PAGES = [[".analysis", "view-state", ["group", "tab", "matrix"]], [".symmetry", "symmetry-view", ["group", "node"]]];
  const listeners = new Set();
  const read = () => Object.fromEntries(new URLSearchParams(location.search));

  cipm.view = {
    values: read(),
    subscribe(action) { listeners.add(action); return () => listeners.delete(action); },
    /* Merge `changes` (null removes); push: a new entry in the history, else the entry is rewritten. */
    patch(changes, push) {
      const next = { ...this.values };
      for (const [name, value] of Object.entries(changes)) {
        if (value === null || value === undefined || value === "") delete next[name];
        else next[name] = String(value);
      }
      const before = this.values;
      const query = new URLSearchParams(next).toString();
      if (query === new URLSearchParams(before).toString()) return;
      this.values = next;
      const address = location.pathname + (query ? `?${query}` : "") + location.hash;
      if (push) history.pushState(history.state, "", address);
      else history.replaceState(history.state, "", address);
      this.announce(before);
    },
    announce(before) {
      for (const action of [...listeners]) action(this.values, before);
      for (const [page, id, structural] of PAGES) {
        if (!document.querySelector(page) || structural.every((name) => before[name] === this.values[name])) continue;
        const data = Object.fromEntries(structural.map((name) => [name, this.values[name] || null]));
        cipm.setProps(id, { data });
      }
    },
    reload() { const before = this.values; this.values = read(); cipm.windows.read(); this.announce(before); },
  };

  /* Back and forward within one page are ours; to another page they are Dash's. Registered before Dash's listener. */
  let path = location.pathname;
  window.addEventListener("popstate", (event) => {
    if (location.pathname === path) { event.stopImmediatePropagation(); cipm.view.reload(); }
    else { path = location.pathname; cipm.view.reload(); }
  });
  const arrive = () => {
    if (location.pathname !== path) { path = location.pathname; cipm.windows.clear(); }
    cipm.view.reload();
  };
  window.addEventListener("_dashprivate_pushstate", arrive);

  /* ---------- zoom windows, linked by axis name ---------- */
  const windows = new Map();
  const watchers = new Set();
  const write = cipm.debounce(250, () => {
    const parts = [];
    for (const [axis, [start, end, size]] of windows) {
      if (start > 0 || end < size) parts.push(axis.replaceAll("*", ""), +start.toFixed(2), +end.toFixed(2));
    }
    cipm.view.patch({ zoom: parts.length ? parts.join("*") : null }, false);
  });

  cipm.windows = {
    read() {
      windows.clear();
      const parts = (cipm.view.values.zoom || "").split("*");
      for (let i = 0; i + 2 < parts.length; i += 3) {
        const [start, end] = [Number(parts[i + 1]), Number(parts[i + 2])];
        if (end > start) windows.set(parts[i], [start, end, Infinity]);
      }
      for (const action of watchers) action();
    },
    clear() { windows.clear(); },
    get(axis, size) {
      const found = windows.get(axis) || windows.get(axis.replace(/\u2032$/, ""));
      if (!found) return [0, size];
      const end = Math.min(found[1], size);
      return end - found[0] > 0 ? [Math.max(0, found[0]), end] : [0, size];
    },
    set(axis, size, start, end) {
      const span = Math.min(size, Math.max(Math.min(2, size), end - start));
      const low = Math.min(Math.max(0, start), size - span);
      windows.set(axis, [low, low + span, size]);
      for (const action of watchers) action(axis);
      write();
    },
    subscribe(action) { watchers.add(action); return () => watchers.delete(action); },
  };
  cipm.windows.read();

  /* ---------- plain objects as Dash components ---------- */
  const registry = (window.cipm_ui = window.cipm_ui || {});
  cipm.component = function (name, Controller) {
    class Mounted extends window.React.Component {
      constructor(props) { super(props); this.node = window.React.createRef(); }
      componentDidMount() { this.controller = new Controller(this.node.current, this.props); }
      componentDidUpdate() { this.controller.update(this.props); }
      componentWillUnmount() { this.controller.destroy(); }
      render() {
        return window.React.createElement("div", { id: this.props.id, className: this.props.className, ref: this.node });
      }
    }
    Mounted.displayName = name;
    registry[name] = Mounted;
  };
})();
