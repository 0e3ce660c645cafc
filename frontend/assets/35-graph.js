/* The model's graph as boxes and lines: pan, zoom, open and close modules, choose a group. The address holds what is chosen
   (group, node) and which modules are open other than at first (open). Text comes from uploads: it is never read as markup. */
(function () {
  "use strict";
  const cipm = window.cipm, SVG = "http://www.w3.org/2000/svg";
  const LEGIBLE = 60, MOST = 400, STRIPES = 5, MORE = 6, SCALE = [0.08, 3], FAR = 0.3;
  const reports = new Map();
  const plural = (count, noun, many) => `${count.toLocaleString("en")} ${count === 1 ? noun : many || `${noun}s`}`;

  /* Colour of a group by its number; frontend/figures.py has the same rule. Follows the scheme by itself. */
  cipm.groupColour = function (group) {
    const hue = (group * 137.508 + 250) % 360, shade = (group % 3 - 1) * 0.07;
    return `oklch(calc(var(--module-light) + ${shade.toFixed(2)}) 0.13 ${hue.toFixed(1)})`;
  };

  function svg(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  function cut(text, most) { return text.length > most ? `${text.slice(0, most - 1)}\u2026` : text; }
  function curve(points) {
    let path = `M${points[0].map((v) => v.toFixed(1))}`;
    for (let at = 1; at < points.length; at += 1) {
      const [[x0, y0], [x1, y1]] = [points[at - 1], points[at]], middle = ((y0 + y1) / 2).toFixed(1);
      path += x0 === x1 ? `V${y1.toFixed(1)}` : `C${x0.toFixed(1)},${middle} ${x1.toFixed(1)},${middle} ${x1.toFixed(1)},${y1.toFixed(1)}`;
    }
    return path;
  }

  class ModelGraph {
    constructor(node, props) {
      this.node = node; this.props = props; this.pointers = new Map(); this.view = null; this.keys = new Map();
      this.build();
      this.undo = [cipm.view.subscribe((values, before) => this.changed(values, before))];
      this.sizer = new ResizeObserver(() => { if (this.drawn && !this.touched) this.fit(); });
      this.sizer.observe(this.stage);
      this.load();
    }
    update(props) { const before = this.props; this.props = props; if (before.src !== props.src) this.load(); }
    destroy() { this.gone = true; this.undo.forEach((action) => action()); this.sizer.disconnect(); }

    build() {
      const { el } = cipm, button = (text, title, action) => el("button", { type: "button", class: "cipm-button subtle", title, "aria-label": title, onclick: action }, text);
      this.layer = svg("g", {});
      this.svg = svg("svg", { class: "mg-svg", role: "group", "aria-label": "The model's graph" }, this.layer);
      this.tip = el("div", { class: "mg-tip", role: "tooltip", hidden: true });
      this.message = el("div", { class: "hm-message", role: "status" });
      this.status = el("span", { class: "mg-status", role: "status" });
      this.stage = el("div", { class: "mg-stage" }, this.svg, this.tip, this.message);
      this.node.classList.add("cipm-graph");
      this.node.replaceChildren(el("div", { class: "mg-head" }, this.status,
        button("Open all", "Open all modules", () => this.openAll(true)), button("Close all", "Close all modules", () => this.openAll(false)),
        button("\u2212", "Zoom out", () => this.zoom(1 / 1.4)), button("+", "Zoom in", () => this.zoom(1.4)), button("Fit", "Show the whole graph", () => this.fit(true))),
        this.stage, el("p", { class: "mg-hint" }, "Click chooses a group, \u25b8 opens a module, wheel zooms, drag moves. Arrow keys walk, Enter chooses, Space opens, Escape lets go."));
      this.listen();
    }
    listen() {
      const on = (name, action, options) => this.stage.addEventListener(name, action.bind(this), options);
      on("wheel", this.onWheel, { passive: false });
      on("pointerdown", this.onDown); on("pointermove", this.onMove); on("pointerup", this.onUp); on("pointercancel", this.onUp);
      on("pointerleave", () => this.hideTip()); on("click", this.onClick); on("dblclick", this.onDouble); on("keydown", this.onKey);
      on("focusin", this.onFocus); on("focusout", () => this.hideTip());
    }

    /* ---------- the report ---------- */
    async load() {
      const address = this.props.share ? `${this.props.src}?${new URLSearchParams({ share: this.props.share })}` : this.props.src;
      this.node.dataset.state = "loading";
      try {
        if (!reports.has(address)) {
          const response = await fetch(address).catch(() => null);
          if (!response || !response.ok) throw await cipm.problem(response);
          reports.clear();
          reports.set(address, await response.json());
        }
        if (this.gone) return;
        this.take(reports.get(address));
      } catch (problem) {
        if (!problem.message || problem instanceof Error) throw problem;
        this.node.dataset.state = "error";
        const again = cipm.el("button", { class: "cipm-link", type: "button", onclick: () => this.load() }, "Try again");
        this.message.replaceChildren(`${problem.message} ${problem.fix || ""} `, again);
      }
    }
    take({ graph, symmetry }) {
      this.message.replaceChildren();
      this.graph = graph; this.symmetry = symmetry; this.tree = new cipm.GraphTree(graph);
      this.numbers = new Map(symmetry.groups.map((group, at) => [group.name, at]));
      this.first = this.tree.opened(LEGIBLE);
      this.summaries = new Map();
      this.draw(); this.fit(); this.reveal();
    }

    /* What a box or closed module stands for: its groups, pins and boxes. */
    about(key) {
      if (!this.summaries.has(key)) {
        const boxes = this.tree.boxes.get(key).map((at) => this.graph.boxes[at]), union = (name) => [...new Set(boxes.flatMap((box) => box[name]))];
        this.summaries.set(key, { boxes, groups: union("groups"), pins: union("pins"), pinning: union("pinning") });
      }
      return this.summaries.get(key);
    }
    title(key) {
      const at = Number(key.slice(1));
      return this.tree.isModule(key) ? this.graph.modules[at].path : [this.graph.boxes[at].module, this.graph.boxes[at].label].filter(Boolean).join(" \u00b7 ");
    }
    label(key) { const at = Number(key.slice(1)); return this.tree.isModule(key) ? this.graph.modules[at].name : this.graph.boxes[at].label; }
    detail(key) {
      if (this.tree.isModule(key)) return plural(this.about(key).boxes.length, "op");
      const box = this.graph.boxes[Number(key.slice(1))], shapes = box.tensors.map((at) => this.graph.tensors[at].shape);
      const largest = shapes.sort((a, b) => b.length - a.length)[0];
      return largest ? `${cut(box.op, 16)} ${largest.join("\u00d7")}` : "";
    }

    /* ---------- the state in the address ---------- */
    get open() {
      const [base, ...paths] = (cipm.view.values.open || "").split("*"), open = new Set(this.based(base));
      for (const path of paths) {
        const id = this.tree.ids.get(path);
        if (id) { if (open.has(id)) open.delete(id); else open.add(id); }
      }
      return this.tree.visible(open).length > MOST ? this.first : open;
    }
    based(base) { return base === "all" ? this.tree.ids.values() : base === "none" ? [] : this.first; }
    setOpen(open) {
      if (this.tree.visible(open).length > MOST) { this.say(`At most ${MOST} boxes are drawn at once: close a module first.`); return false; }
      const written = ["", "all", "none"].map((base) => {
        const from = new Set(this.based(base)), other = [...this.tree.ids].filter(([, id]) => open.has(id) !== from.has(id));
        return [base, ...other.map(([path]) => path)].join("*");
      });
      cipm.view.patch({ open: written.reduce((best, next) => (next.length < best.length ? next : best)) || null }, false);
      return true;
    }
    toggle(key) {
      if (!this.tree.isModule(key)) return;
      const open = this.open, before = this.places.get(key);
      if (open.has(key)) open.delete(key); else open.add(key);
      if (!this.setOpen(open)) return;
      const after = this.places.get(key);  // the same corner stays under the pointer
      if (before && after) this.move(this.view.x + (before.x - after.x) * this.view.k, this.view.y + (before.y - after.y) * this.view.k);
      this.focus(key);
    }
    openAll(all) {
      const every = new Set(all ? this.tree.ids.values() : []), fits = this.tree.visible(every).length <= MOST;
      if (this.setOpen(fits ? every : this.tree.opened(MOST))) { this.touched = false; this.fit(); }
      if (!fits) this.say(`At most ${MOST} boxes are drawn at once: open the rest one by one.`);
    }
    changed(values, before) {
      if (!this.tree || this.gone) return;
      if (values.open !== before.open) this.draw();
      if (values.group !== before.group || values.node !== before.node) { this.mark(); this.reveal(); }
    }
    get group() { return this.numbers.get(cipm.view.values.group) ?? null; }
    choose(key) {
      const { groups } = this.about(key), same = cipm.view.values.node === key;
      const next = groups.length ? groups[same && groups.includes(this.group) ? (groups.indexOf(this.group) + 1) % groups.length : groups.includes(this.group) ? groups.indexOf(this.group) : 0] : null;
      cipm.view.patch({ node: key, group: next === null ? null : this.symmetry.groups[next].name }, true);
    }
    letGo() { cipm.view.patch(cipm.view.values.node ? { node: null } : { group: null, node: null }, true); }

    /* ---------- drawing ---------- */
    draw() {
      const start = performance.now(), open = this.open, focused = document.activeElement && this.stage.contains(document.activeElement) ? document.activeElement.dataset.key : null;
      const layout = cipm.layoutGraph(this.tree, open, (key) => this.size(key));
      this.places = new Map(layout.boxes.map((box) => [box.key, box])); this.whole = [layout.w, layout.h];
      this.keys = new Map(); this.lines = [];
      const frames = svg("g", {}), lines = svg("g", {}), boxes = svg("g", {});
      for (const box of layout.boxes) (box.open ? frames : boxes).append(this.box(box));
      for (const line of layout.lines) lines.append(this.line(line));
      this.layer.replaceChildren(frames, lines, boxes);
      this.mark();
      if (focused) this.focus(focused);
      this.drawn = true;
      this.node.dataset.boxes = this.tree.visible(open).length;
      this.node.dataset.drew = (performance.now() - start).toFixed(1);
      this.node.dataset.state = "ready";
      this.say("");
    }
    say(text) { this.status.textContent = text || `${plural(Number(this.node.dataset.boxes || 0), "box", "boxes")} of ${plural(this.graph.boxes.length, "op")}`; }
    size(key) {
      const detail = this.detail(key), chars = Math.max(cut(this.label(key), 24).length * 7.1, detail.length * 6);
      return [Math.round(Math.min(210, Math.max(64, chars + 34 + (this.tree.isModule(key) ? 14 : 0)))), detail ? 40 : 26];
    }
    box({ key, x, y, w, h, open }) {
      const about = this.about(key), kind = this.tree.isModule(key) ? (open ? "frame" : "module") : this.graph.boxes[Number(key.slice(1))].kind;
      const group = svg("g", { class: `mg-box ${kind}`, transform: `translate(${x.toFixed(1)},${y.toFixed(1)})`, "data-key": key, tabindex: "-1",
        role: "button", "aria-label": this.spoken(key, about), "aria-expanded": this.tree.isModule(key) ? String(open) : null });
      group.append(svg("rect", { width: w, height: h, rx: kind === "input" || kind === "output" ? 13 : 5 }));
      if (!open) this.stripes(group, about.groups, h);
      const left = this.tree.isModule(key) ? 28 : 14, detail = open ? "" : this.detail(key);
      const name = svg("text", { x: left, y: open ? 16 : detail ? 17 : 17.5, class: "mg-name" });
      name.textContent = cut(this.label(key), open ? Math.max(6, Math.floor((w - 40) / 6.6)) : 24);
      group.append(name);
      if (detail) { const second = svg("text", { x: left, y: 32, class: "mg-detail" }); second.textContent = detail; group.append(second); }
      if (this.tree.isModule(key)) group.append(this.knob(open));
      if (!open && about.pins.length + about.pinning.length) group.append(svg("path", { class: "mg-pin", transform: `translate(${w - 9},3)`, d: "M-3,0h6l-1,4l2,2h-8l2,-2zM0,6v5" }));
      this.keys.set(key, group);
      return group;
    }
    stripes(box, groups, h) {
      const shown = groups.slice(0, STRIPES), each = (h - 6) / Math.max(1, shown.length);
      shown.forEach((number, at) => box.append(svg("rect", { class: "mg-stripe", x: 3, y: 3 + at * each, width: 5, height: Math.max(1, each - 1), rx: 1,
        "data-group": number, style: `fill:${cipm.groupColour(number)}` })));
    }
    knob(open) {
      return svg("g", { class: "mg-knob", transform: "translate(18,12)" }, svg("circle", { r: 9 }),
        svg("path", { d: open ? "M-4,-2L0,3L4,-2z" : "M-2,-4L3,0L-2,4z" }));
    }
    spoken(key, about) {
      const names = about.groups.slice(0, MORE).map((number) => this.symmetry.groups[number].name), more = about.groups.length - names.length;
      return [this.title(key), this.detail(key), names.length ? `groups ${names.join(", ")}${more > 0 ? ` and ${more} more` : ""}` : "no group",
        about.pins.length ? plural(about.pins.length, "pinned axis", "pinned axes") : ""].filter(Boolean).join("; ");
    }
    line(line) {
      const colour = line.groups.length ? cipm.groupColour(line.groups[0]) : null, d = curve(line.back ? [...line.points] : line.points);
      const group = svg("g", { class: `mg-line${line.groups.length ? "" : " bare"}`, "data-line": this.lines.length }, svg("path", { class: "mg-hit", d }),
        svg("path", { class: "mg-path", d, style: colour ? `stroke:${colour}` : null }));
      if (line.arrow) {
        const [x, y] = line.back ? line.points[0] : line.points.at(-1), turn = line.back ? -1 : 1;
        group.append(svg("path", { class: "mg-head-of", d: `M${x - 3.5},${y - 6 * turn}L${x},${y}L${x + 3.5},${y - 6 * turn}`, style: colour ? `stroke:${colour}` : null }));
      }
      this.lines.push({ ...line, element: group });
      return group;
    }
    /* What is chosen stands out, the rest steps back. */
    mark() {
      const chosen = this.group, node = cipm.view.values.node;
      this.svg.classList.toggle("choosing", chosen !== null);
      const colour = chosen === null ? null : cipm.groupColour(chosen);
      this.svg.style.setProperty("--chosen", colour || "var(--accent)");
      for (const [key, element] of this.keys) {
        element.classList.toggle("on", chosen !== null && this.about(key).groups.includes(chosen));
        element.classList.toggle("chosen", key === node);
        element.setAttribute("aria-pressed", String(key === node));
      }
      for (const { groups, element } of this.lines) element.classList.toggle("on", chosen !== null && groups.includes(chosen));
      this.rove(this.keys.has(node) ? node : null);
      this.node.dataset.group = chosen === null ? "" : this.symmetry.groups[chosen].name;
    }
    rove(key) {
      const stop = key || (this.keys.has(this.stop) ? this.stop : [...this.keys.keys()].find((other) => !this.open.has(other)));
      if (this.keys.has(this.stop)) this.keys.get(this.stop).setAttribute("tabindex", "-1");
      if (stop) this.keys.get(stop).setAttribute("tabindex", "0");
      this.stop = stop;
    }
    focus(key) { if (this.keys.has(key)) { this.rove(key); this.keys.get(key).focus({ preventScroll: true }); } }

    /* ---------- moving about ---------- */
    move(x, y, k = this.view.k) {
      this.view = { x, y, k };
      this.layer.setAttribute("transform", `translate(${x.toFixed(1)},${y.toFixed(1)}) scale(${k.toFixed(4)})`);
      this.svg.classList.toggle("far", k < FAR);
      this.node.dataset.scale = k.toFixed(3);
      this.hideTip();
    }
    get room() { const { width, height } = this.stage.getBoundingClientRect(); return [width, height]; }
    /* The whole graph where it stays legible (or where it was asked for), else its beginning. */
    fit(asked) {
      const [width, height] = this.room, [w, h] = this.whole;
      if (!width || !w) return;
      const whole = Math.min((width - 32) / w, (height - 32) / h, 1.25), k = asked ? Math.max(SCALE[0], whole) : Math.max(whole, Math.min(0.85, Math.max(0.45, (width - 32) / w)));
      this.touched = Boolean(asked);
      this.move((width - w * k) / 2, h * k + 32 > height ? 16 : (height - h * k) / 2, k);
    }
    zoom(factor, at) {
      const [width, height] = this.room, [px, py] = at || [width / 2, height / 2], k = Math.min(SCALE[1], Math.max(SCALE[0], this.view.k * factor)), by = k / this.view.k;
      this.touched = true;
      this.move(px - (px - this.view.x) * by, py - (py - this.view.y) * by, k);
    }
    /* Bring what is chosen into view, where none of it is. */
    reveal() {
      const node = cipm.view.values.node, wanted = this.places.has(node) ? [this.places.get(node)]
        : [...this.keys].filter(([key, element]) => element.classList.contains("on") && !this.places.get(key).open).map(([key]) => this.places.get(key));
      if (!wanted.length || wanted.some((box) => this.inView(box))) return;
      const [width, height] = this.room, { k } = this.view, box = wanted[0];
      this.touched = true;
      this.move(width / 2 - (box.x + box.w / 2) * k, height / 3 - (box.y + Math.min(box.h, height / k) / 2) * k);
    }
    inView({ x, y, w, h }) {
      const [width, height] = this.room, left = x * this.view.k + this.view.x, top = y * this.view.k + this.view.y;
      return left + w * this.view.k > 8 && top + h * this.view.k > 8 && left < width - 8 && top < height - 8;
    }
    point(event) { const box = this.stage.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; }
    onWheel(event) {
      if (!this.drawn) return;
      event.preventDefault();
      const step = event.deltaMode === 1 ? event.deltaY * 16 : event.deltaY;
      this.zoom(Math.exp(-Math.max(-400, Math.min(400, step)) * (event.ctrlKey ? 0.008 : 0.0016)), this.point(event));
    }
    onDown(event) { if (event.button === 0 && this.drawn) { this.pointers.set(event.pointerId, this.point(event)); this.dragged = 0; } }
    onMove(event) {
      const before = this.pointers.get(event.pointerId), now = this.point(event);
      if (!before) { this.hover(event); return; }
      if (this.pointers.size === 1) this.drag(event, before, now); else this.pinch(event.pointerId, now);
      this.pointers.set(event.pointerId, now);
    }
    drag(event, before, now) {
      this.dragged += Math.hypot(now[0] - before[0], now[1] - before[1]);
      if (this.dragged < 4) return;
      this.stage.setPointerCapture(event.pointerId);
      this.touched = true;
      this.move(this.view.x + now[0] - before[0], this.view.y + now[1] - before[1]);
    }
    pinch(id, now) {
      const other = [...this.pointers].find(([key]) => key !== id)[1], before = this.pointers.get(id), gap = (one) => Math.max(10, Math.hypot(one[0] - other[0], one[1] - other[1]));
      this.dragged = 10;
      this.zoom(gap(now) / gap(before), [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2]);
    }
    onUp(event) { this.pointers.delete(event.pointerId); }

    /* ---------- choosing ---------- */
    hit(event) { const found = event.target.closest && event.target.closest("[data-key]"); return found && this.layer.contains(found) ? found.dataset.key : null; }
    onClick(event) {
      if (!this.drawn || this.dragged > 4 || event.target.closest("button")) return;
      const key = this.hit(event), line = event.target.closest("[data-line]");
      if (key && event.target.closest(".mg-knob")) this.toggle(key);
      else if (key) { this.rove(key); this.choose(key); }
      else if (line) this.chooseLine(this.lines[Number(line.dataset.line)]);
    }
    chooseLine({ groups }) {
      if (!groups.length) return;
      const next = groups[groups.includes(this.group) ? (groups.indexOf(this.group) + 1) % groups.length : 0];
      cipm.view.patch({ group: this.symmetry.groups[next].name, node: null }, true);
    }
    onDouble(event) { const key = this.hit(event); if (key && !event.target.closest(".mg-knob")) this.toggle(key); }
    onFocus(event) {
      const key = this.hit(event), box = key && this.places.get(key);
      if (!box || !event.target.matches(":focus-visible")) return;
      const [width, height] = this.room, { k } = this.view;
      if (!this.inView({ ...box, h: 30 / k })) this.move(width / 2 - (box.x + box.w / 2) * k, height / 3 - box.y * k);
      this.showTip(key, [box.x * this.view.k + this.view.x, (box.y + (box.open ? 22 : box.h)) * this.view.k + this.view.y]);
    }
    onKey(event) {
      const key = this.hit(event), steps = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
      if (!this.drawn || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button")) return;
      if (event.key === "Escape") { this.hideTip(); this.letGo(); }
      else if (event.key === "0") this.fit(true);
      else if (event.key === "+" || event.key === "=") this.zoom(1.3);
      else if (event.key === "-") this.zoom(1 / 1.3);
      else if (key && event.key === "Enter") this.choose(key);
      else if (key && event.key === " ") this.toggle(key);
      else if (key && steps[event.key]) this.walk(key, steps[event.key]);
      else return;
      event.preventDefault();
      event.stopPropagation();
    }
    /* The nearest box in a direction, a step aside counting thrice. */
    walk(key, [dx, dy]) {
      const centre = (box) => [box.x + box.w / 2, box.y + (box.open ? 11 : box.h / 2)], [x, y] = centre(this.places.get(key));
      let best = null, least = Infinity;
      for (const [other, box] of this.places) {
        const [ox, oy] = centre(box), ahead = (ox - x) * dx + (oy - y) * dy, aside = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
        if (other !== key && ahead > 2 && ahead + 3 * aside < least) { best = other; least = ahead + 3 * aside; }
      }
      if (best) this.focus(best);
    }

    /* ---------- what the pointer is on ---------- */
    hover(event) {
      const key = this.hit(event), line = event.target.closest && event.target.closest("[data-line]");
      if (key && !(this.tree.isModule(key) && this.open.has(key))) this.showTip(key, this.point(event));
      else if (line && this.lines[Number(line.dataset.line)].groups.length) this.showTip(null, this.point(event), this.lines[Number(line.dataset.line)].groups);
      else this.hideTip();
    }
    hideTip() { this.tip.hidden = true; this.tipped = null; }
    showTip(key, [x, y], groups) {
      const name = key || `line ${groups}`, [width, height] = this.room;
      if (this.tipped !== name) this.tip.replaceChildren(...(key ? this.told(key) : this.chips(groups)));
      this.tipped = name;
      this.tip.hidden = false;
      const { offsetWidth, offsetHeight } = this.tip;
      this.tip.style.left = `${Math.max(4, Math.min(x + 14, width - offsetWidth - 6))}px`;
      this.tip.style.top = `${y + 16 + offsetHeight > height ? Math.max(4, y - offsetHeight - 12) : y + 16}px`;
    }
    chips(groups) {
      const some = groups.slice(0, MORE).map((number) => {
        const dot = cipm.el("i", { class: "dot" }); dot.style.background = cipm.groupColour(number);
        return cipm.el("div", {}, dot, this.symmetry.groups[number].name);
      });
      return groups.length > MORE ? [...some, cipm.el("div", { class: "quiet" }, `and ${groups.length - MORE} more`)] : some;
    }
    told(key) {
      const { el } = cipm, about = this.about(key), box = this.tree.isModule(key) ? null : this.graph.boxes[Number(key.slice(1))];
      const tensors = (box ? box.tensors : []).slice(0, MORE).map((at) => this.graph.tensors[at]);
      const pins = [...new Set([...about.pins, ...about.pinning])];
      return [el("b", {}, this.title(key)), el("div", { class: "quiet" }, box ? box.op : plural(about.boxes.length, "op")),
        ...tensors.map((tensor) => el("div", {}, el("code", {}, tensor.name), ` ${tensor.shape.join(" \u00d7 ") || "one number"}`)),
        ...this.chips(about.groups), ...pins.slice(0, MORE).map((at) => this.pinned(this.symmetry.pins[at])),
        ...(pins.length > MORE ? [el("div", { class: "quiet" }, `and ${pins.length - MORE} more pins`)] : [])];
    }
    pinned(pin) { return cipm.el("div", { class: "mg-tip-pin" }, `Pinned: ${pin.tensor} axis ${pin.axis}: ${pin.reason}`); }
  }

  /* Links from the tables below into the graph. */
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("[data-graph-group], [data-graph-node]");
    if (!link) return;
    cipm.view.patch({ group: link.dataset.graphGroup || null, node: link.dataset.graphNode || null }, true);
    const graph = document.querySelector(".cipm-graph");
    if (graph) graph.scrollIntoView({ block: "nearest" });
  });

  cipm.component("ModelGraph", ModelGraph);
})();
