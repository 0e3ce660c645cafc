/* Small behaviours by delegation: buttons that set the view, the group list, sorting, copying, keys. */
(function () {
  "use strict";
  const cipm = window.cipm;
  const DEFAULTS = { show: "reordered", stat: "mean", tab: "correlation" };
  const typing = (node) => node.closest && node.closest("input, textarea, select, [contenteditable]");

  /* ---------- controls bound to the view: [data-key][data-value] ---------- */
  function current(node) {
    const { key } = node.dataset, group = node.closest("[data-default]");
    return cipm.view.values[key] || (group && group.dataset.default) || DEFAULTS[key];
  }
  function mark() {
    for (const node of document.querySelectorAll("[data-key][data-value]")) {
      const on = String(current(node) === node.dataset.value);
      const attribute = node.getAttribute("role") === "radio" ? "aria-checked" : "aria-selected";
      if (node.getAttribute(attribute) !== on) node.setAttribute(attribute, on);
      const stop = on === "true" ? "0" : "-1";
      if (node.getAttribute("tabindex") !== stop) node.setAttribute("tabindex", stop);
    }
  }
  function choose(node) {
    const changes = { [node.dataset.key]: node.dataset.value };
    if (node.dataset.key === "group") Object.assign(changes, { matrix: null, range: null, keep: null, node: null });
    cipm.view.patch(changes, ["group", "tab", "order", "show"].includes(node.dataset.key));
  }
  cipm.view.subscribe(mark);
  const later = cipm.debounce(0, mark);
  new MutationObserver(later).observe(document.documentElement, { childList: true, subtree: true });

  function step(node, by) {
    const list = node.closest("[role=radiogroup], [role=listbox], [role=tablist]");
    const all = [...list.querySelectorAll("[data-key][data-value]")].filter((other) => !other.hidden);
    const next = all[Math.min(all.length - 1, Math.max(0, all.indexOf(node) + by))];
    if (next && next !== node) { choose(next); next.focus(); next.scrollIntoView({ block: "nearest" }); }
  }

  /* ---------- clicks ---------- */
  async function copy(button) {
    await navigator.clipboard.writeText(button.dataset.copy);
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1200);
  }
  function goToModule(node) {
    const module = Number(node.dataset.module), { group } = node.dataset;
    if (cipm.view.values.show === "original") cipm.view.patch({ show: null }, true);
    const attempt = (tries) => {
      if (cipm.zoomToModule(group, module)) return;
      if (tries === 3) cipm.view.patch({ order: "modules" }, true);
      if (tries > 0) setTimeout(() => attempt(tries - 1), 250);
    };
    attempt(3);
  }
  function sort(head) {
    const table = head.closest("table"), body = table.tBodies[0], column = [...head.parentNode.children].indexOf(head);
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => { const text = row.children[column].dataset.value ?? row.children[column].textContent; return Number.isNaN(Number(text)) ? text : Number(text); };
    const rows = [...body.rows].sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
    body.append(...(down ? rows.reverse() : rows));
  }
  document.addEventListener("click", (event) => {
    const hit = (selector) => event.target.closest && event.target.closest(selector);
    let node;
    if ((node = hit("[data-copy]"))) copy(node);
    else if ((node = hit("[data-key][data-value]"))) choose(node);
    else if ((node = hit("[data-module][data-group]"))) goToModule(node);
    else if ((node = hit("[data-zoom-all]"))) { cipm.view.patch({ zoom: null }, false); cipm.windows.read(); }
    else if ((node = hit("th[data-sort]"))) sort(node);
  });

  /* ---------- filters: what they filter, and what says that nothing is left ---------- */
  const FILTERS = { "group-filter": ["#group-list [data-key=group]", "group-none"], "pin-filter": ["#pin-rows [data-search]", "pin-none"] };
  document.addEventListener("input", (event) => {
    const { target } = event, [rows, note] = FILTERS[target.id] || [];
    if (!rows) return;
    const words = target.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of document.querySelectorAll(rows)) {
      row.hidden = !words.every((word) => row.dataset.search.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    const none = document.getElementById(note);
    if (none) none.hidden = shown > 0;
  });

  /* ---------- keys ---------- */
  const arrows = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const bound = event.target.closest && event.target.closest("[role] > [data-key][data-value], [role] [data-key][data-value]");
    if (bound && arrows[event.key]) { event.preventDefault(); step(bound, arrows[event.key]); return; }
    if (event.target.id === "group-filter" && event.key === "ArrowDown") {
      const first = document.querySelector("#group-list [data-key=group]:not([hidden])");
      if (first) { event.preventDefault(); first.focus(); }
      return;
    }
    if (typing(event.target)) return;
    if (event.key === "o" && document.querySelector(".cipm-heatmap")) {
      cipm.view.patch({ show: cipm.view.values.show === "original" ? null : "original" }, false);
    } else if (event.key === "/" && document.getElementById("group-filter")) {
      event.preventDefault();
      document.getElementById("group-filter").focus();
    }
  });

  /* ---------- forms that speak to the API in the browser, because the answer sets the visitor's cookie ---------- */
  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!form.dataset || !form.dataset.api) return;
    event.preventDefault();
    const button = event.submitter, note = form.querySelector("[role=alert]");
    const [method, address] = ((button && button.value) || form.dataset.api).split(" ");
    const response = await fetch(address, { method, headers: { "Content-Type": "application/json" },
      body: JSON.stringify(Object.fromEntries(new FormData(form))) }).catch(() => null);
    if (response && response.ok) { location.assign(form.dataset.next || "/"); return; }
    const problem = await cipm.problem(response);
    note.textContent = `${problem.message} ${problem.fix || ""}`;
  });

  /* ---------- called by Dash's clientside callbacks ---------- */
  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.cipm = {
    patchMatrix(value) { if (value) cipm.view.patch({ matrix: value, range: null }, true); return window.dash_clientside.no_update; },
    patchKeep(value) { if (value !== null && value !== undefined) cipm.view.patch({ keep: value }, false); return window.dash_clientside.no_update; },
  };
})();
