/* The tile viewer: one canvas for ticks, module strips and cells, one above it for the cross-hair.
   Coordinates: an axis has `size` units of `blocks` positions each; zoom windows are in units, tiles in positions. */
(function () {
  "use strict";
  const cipm = window.cipm, SIDE = cipm.SIDE;
  const LEFT = 44, TOP = 18, STRIP = 9, GAP = 3, MOST_TILES = 48;
  const metas = new Map();
  const minus = (text) => String(text).replace("-", "\u2212");

  async function loadMeta(address) {
    if (!metas.has(address)) {
      const response = await fetch(address).catch(() => null);
      if (!response || !response.ok) throw await cipm.problem(response);
      metas.set(address, await response.json());
    }
    return metas.get(address);
  }

  /* One axis as shown: which unit and module stand at a position. A unit spans `blocks` neighbouring positions (the
     kernel of a convolution); an axis of several runs of the same units is linked with its like only. */
  class Axis {
    constructor(raw, positions, twin) {
      const runs = raw.blocks || 1, units = raw.ids ? new Set(raw.ids).size : positions;
      const even = Number.isInteger(positions / units / runs);
      this.name = raw.axis + (runs > 1 ? `/${runs}` : "") + (twin ? "\u2032" : "");
      this.title = raw.axis;
      this.blocks = even ? positions / units / runs : 1;
      this.positions = positions;
      this.size = positions / this.blocks;
      this.ids = raw.ids || null;
      this.modules = raw.modules && raw.modules.some((module) => module >= 0) ? raw.modules : null;
    }
    get units() { return this.ids ? (this.count = this.count || new Set(this.ids).size) : this.size; }
    unit(position) { return this.ids ? this.ids[position] : Math.floor(position / this.blocks); }
    label(position) { return String(this.ids ? this.ids[position] : position); }
    part(position) { return this.blocks > 1 ? position % this.blocks : null; }
    module(position) { return this.modules ? this.modules[position] : -1; }
    get window() { return cipm.windows.get(this.name, this.size); }
    move(start, end) { cipm.windows.set(this.name, this.size, start, end); }
    /* First and last position of a module, or null; whole says that nothing else stands between. */
    extent(module) {
      if (!this.modules) return null;
      const first = this.modules.indexOf(module), last = this.modules.lastIndexOf(module);
      if (first < 0) return null;
      const count = this.modules.reduce((sum, value) => sum + (value === module), 0);
      return { start: first / this.blocks, end: (last + 1) / this.blocks, whole: last - first + 1 === count };
    }
  }

  class Heatmap {
    constructor(node, props) {
      this.node = node; this.props = props; this.pointers = new Map(); this.meta = null; this.source = null;
      this.build();
      this.undo = [
        cipm.view.subscribe(() => this.refresh()),
        cipm.windows.subscribe(() => this.schedule()),
        cipm.onScheme(() => this.schedule()),
      ];
      this.sizer = new ResizeObserver(() => this.schedule());
      this.sizer.observe(this.stage);
      this.request = cipm.debounce(25, () => this.fetchTiles());
      Heatmap.all.add(this);
      this.refresh();
    }

    update(props) { this.props = props; this.refresh(); }
    destroy() {
      Heatmap.all.delete(this);
      this.undo.forEach((action) => action());
      this.sizer.disconnect();
      cancelAnimationFrame(this.frame);
      if (this.source) this.source.stop();
      this.gone = true;
    }

    build() {
      const { el } = cipm;
      this.canvas = el("canvas", { class: "hm-canvas", "aria-hidden": "true" });
      this.overlay = el("canvas", { class: "hm-canvas hm-overlay", "aria-hidden": "true" });
      this.message = el("div", { class: "hm-message", role: "status" });
      this.stage = el("div", { class: "hm-stage", tabindex: "0", role: "application" }, this.canvas, this.overlay, this.message);
      this.caption = el("span", { class: "hm-caption" });
      this.detail = el("span", { class: "hm-detail" });
      this.readout = el("div", { class: "hm-readout" });
      this.legend = el("div", { class: "hm-marks" });
      this.marks = new cipm.Marks(this.legend, () => this.schedule());
      this.bar = el("canvas", { class: "hm-bar", width: 256, height: 1, "aria-hidden": "true" });
      this.low = el("span", {}); this.high = el("span", {});
      this.slider = el("input", { type: "range", class: "hm-range", min: "0", max: "100", step: "1", "aria-label": "Range of the colours",
        title: "Range of the colours" });
      this.slider.addEventListener("input", () => this.slide());
      this.summary = el("p", { class: "visually-hidden", id: `${this.props.id}-summary` });
      this.stage.setAttribute("aria-describedby", this.summary.id);
      this.node.classList.add("cipm-heatmap");
      this.node.replaceChildren(el("div", { class: "hm-head" }, this.caption, this.legend, this.detail), this.stage,
        el("div", { class: "hm-foot" }, this.readout,
          el("div", { class: "hm-scale" }, this.low, el("span", { class: "hm-bars" }, this.bar, this.slider), this.high)),
        this.summary);
      this.listen();
    }

    listen() {
      const on = (name, action, options) => this.stage.addEventListener(name, action.bind(this), options);
      on("wheel", this.onWheel, { passive: false });
      on("pointerdown", this.onDown); on("pointermove", this.onMove); on("pointerup", this.onUp);
      on("pointercancel", this.onUp); on("pointerleave", () => { this.cursor = null; this.hover(); });
      on("dblclick", this.reset); on("keydown", this.onKey);
    }

    /* ---------- what to show ---------- */
    get shown() {
      const show = cipm.view.values.show || "reordered";
      return show === "both" || show === this.props.pane;
    }
    get order() {
      if (this.props.pane === "original") return "original";
      const asked = cipm.view.values.order;
      return (this.props.orders || []).includes(asked) ? asked : this.props.order;
    }
    get query() {
      const query = new URLSearchParams({ order: this.order });
      if (this.props.share) query.set("share", this.props.share);
      return query.toString();
    }

    async refresh() {
      this.node.hidden = !this.shown;
      if (!this.shown) return;
      this.marks.refresh(this.props);
      const stat = cipm.view.values.stat === "maxabs" ? "maxabs" : "mean";
      const address = `${this.props.src}?${this.query}`, wanted = `${address}|${stat}`;
      if (this.wanted === wanted) { this.schedule(); return; }
      this.wanted = wanted;
      this.state("loading");
      try {
        const meta = await loadMeta(address);
        if (this.wanted !== wanted || this.gone) return;
        if (this.source) this.source.stop();
        this.show(meta, new cipm.TileSource(meta, this.props.src, this.query, stat));
      } catch (problem) {
        if (!problem.message) throw problem;
        if (this.wanted === wanted) { this.wanted = null; this.fail(problem); }
      }
    }

    show(meta, source) {
      const [rows, cols] = meta.shape;
      this.meta = meta; this.source = source;
      this.rows = new Axis(meta.rows, rows, false);
      this.cols = new Axis(meta.cols, cols, meta.rows.axis === meta.cols.axis);
      this.caption.textContent = `${this.props.caption || meta.title} \u00b7 ${this.order}`;
      this.describe();
      this.schedule();
    }

    describe() {
      const { meta } = this, number = cipm.number;
      const missing = meta.nan ? ` \u00b7 ${meta.nan.toLocaleString("en")} missing` : "";
      this.detail.textContent = `${meta.shape[0].toLocaleString("en")} \u00d7 ${meta.shape[1].toLocaleString("en")}${missing}`;
      this.stage.setAttribute("aria-label", `Heatmap of ${meta.title}, order ${this.order}. Arrow keys move, plus and minus zoom, zero shows all.`);
      this.summary.textContent = `${meta.shape[0]} rows along ${this.rows.title}, ${meta.shape[1]} columns along ${this.cols.title}; ` +
        `values from ${number(meta.vmin)} to ${number(meta.vmax)}; 99 % within \u00b1${number(meta.q99)}${missing}.`;
      this.node.dataset.order = this.order;
    }

    state(value) { this.node.dataset.state = value; if (value !== "error") this.message.replaceChildren(); }
    fail(problem) {
      this.state("error");
      const again = cipm.el("button", { class: "cipm-link", type: "button", onclick: () => { this.wanted = null; this.refresh(); } }, "Try again");
      this.message.replaceChildren(`${problem.message} ${problem.fix || ""} `, again);
    }

    /* ---------- the colour range ---------- */
    get most() { return this.props.kind === "correlation" ? 1 : this.meta.absmax || 1; }
    get limit() {
      if (this.props.kind === "correlation") return 1;
      const asked = Number(cipm.view.values.range);
      return asked > 0 ? Math.min(asked, this.most) : this.meta.q99 || this.most;
    }
    slide() {
      const limit = this.most * 10 ** ((Number(this.slider.value) / 100 - 1) * 3);
      cipm.view.patch({ range: Number(limit.toPrecision(3)) }, false);
    }
    drawBar() {
      const fixed = this.props.kind === "correlation", ramp = cipm.ramp(cipm.scheme());
      const key = `${this.limit}|${cipm.scheme()}`;
      if (this.barKey === key) return;
      this.barKey = key;
      const context = this.bar.getContext("2d"), image = context.createImageData(256, 1);
      const pixels = new Uint32Array(image.data.buffer);
      for (let i = 0; i < 256; i += 1) pixels[i] = ramp[Math.round((i / 255) * 1024)];
      context.putImageData(image, 0, 0);
      const clipped = this.limit < this.most ? ["\u2264 ", "\u2265 "] : ["", ""];
      const short = minus(Number(this.limit.toPrecision(3)));
      this.low.textContent = `${clipped[0]}${minus("-")}${short}`;
      this.high.textContent = clipped[1] + short;
      this.slider.hidden = fixed;
      this.slider.value = String(Math.round((Math.log10(this.limit / this.most) / 3 + 1) * 100));
      this.slider.setAttribute("aria-valuetext", `plus or minus ${cipm.number(this.limit)}`);
    }

    /* ---------- geometry ---------- */
    layout() {
      const box = this.stage.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
      const left = LEFT + (this.rows.modules ? STRIP + GAP : 0), top = TOP + (this.cols.modules ? STRIP + GAP : 0);
      let width = Math.floor(box.width - left - 1), height = Math.floor(box.height - top - 1);
      if (this.props.kind === "correlation") width = height = Math.min(width, height);
      if (width < 8 || height < 8) return null;
      const [r0, r1] = this.rows.window, [c0, c1] = this.cols.window;
      return { ratio, left, top, width, height, whole: [box.width, box.height],
        r0: r0 * this.rows.blocks, r1: r1 * this.rows.blocks, c0: c0 * this.cols.blocks, c1: c1 * this.cols.blocks };
    }

    /* The finest level at which a screen pixel is not skipped and not more than MOST_TILES are needed. */
    level(g) {
      const dense = Math.min((g.c1 - g.c0) / (g.width * g.ratio), (g.r1 - g.r0) / (g.height * g.ratio));
      const top = this.meta.levels - 1;
      let level = Math.min(top, Math.max(0, Math.floor(Math.log2(Math.max(1, dense)) + 0.25)));
      while (level < top && this.tiles(g, level).length > MOST_TILES) level += 1;
      return level;
    }
    tiles(g, level) {
      const span = SIDE * 2 ** level, out = [];
      for (let y = Math.floor(g.r0 / span); y * span < g.r1; y += 1)
        for (let x = Math.floor(g.c0 / span); x * span < g.c1; x += 1) out.push({ level, x, y });
      const cx = (g.c0 + g.c1) / 2 / span - 0.5, cy = (g.r0 + g.r1) / 2 / span - 0.5;
      return out.sort((a, b) => Math.hypot(a.x - cx, a.y - cy) - Math.hypot(b.x - cx, b.y - cy));
    }

    /* ---------- drawing ---------- */
    schedule() {
      if (!this.source || this.node.hidden) return;
      cancelAnimationFrame(this.frame);
      this.frame = requestAnimationFrame(() => this.draw());
    }

    draw() {
      const g = this.layout();
      if (!g || this.gone) return;
      this.g = g;
      const context = this.sized(this.canvas, g);
      const style = getComputedStyle(this.node);
      this.ink = { text: style.getPropertyValue("--hm-ink"), line: style.getPropertyValue("--hm-line"), empty: style.getPropertyValue("--hm-empty") };
      const level = this.level(g), wanted = this.tiles(g, level);
      this.shownLevel = level;
      context.fillStyle = this.ink.empty;
      context.fillRect(g.left, g.top, g.width, g.height);
      context.save();
      context.beginPath(); context.rect(g.left, g.top, g.width, g.height); context.clip();
      const table = cipm.colourTable(this.limit / (this.meta.scale || 1), cipm.scheme());
      let complete = true;
      for (const tile of wanted) complete = this.drawTile(context, g, tile, table) && complete;
      this.marks.draw(context, g, this.rows, this.cols);
      context.restore();
      this.drawAxis(context, g, true); this.drawAxis(context, g, false);
      context.strokeStyle = this.ink.line; context.lineWidth = 1;
      context.strokeRect(g.left - 0.5, g.top - 0.5, g.width + 1, g.height + 1);
      this.drawBar();
      this.hover();
      this.node.dataset.level = level;
      this.node.dataset.window = [g.r0, g.r1, g.c0, g.c1].map((value) => +value.toFixed(2)).join(",");
      this.state(complete ? "ready" : "loading");
      this.wantedTiles = wanted;
      this.request();
    }

    sized(canvas, g) {
      const [width, height] = [Math.round(g.whole[0] * g.ratio), Math.round(g.whole[1] * g.ratio)];
      if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
      const context = canvas.getContext("2d");
      context.setTransform(g.ratio, 0, 0, g.ratio, 0, 0);
      context.clearRect(0, 0, g.whole[0], g.whole[1]);
      return context;
    }

    fetchTiles() {
      if (this.gone || !this.source || !this.wantedTiles) return;
      const coarse = { level: this.meta.levels - 1, x: 0, y: 0 };
      this.source.want([coarse, ...this.wantedTiles], () => this.schedule(), (problem) => this.fail(problem));
    }

    /* Draw one tile, or the part of a coarser one that covers it; true when it is the right one. */
    drawTile(context, g, { level, x, y }, table) {
      const span = SIDE * 2 ** level;
      const from = [x * span, y * span], to = [Math.min((x + 1) * span, this.cols.positions), Math.min((y + 1) * span, this.rows.positions)];
      for (let at = level; at < this.meta.levels; at += 1) {
        const shift = 2 ** (at - level), tile = this.source.get(at, Math.floor(x / shift), Math.floor(y / shift));
        if (!tile) continue;
        this.paint(context, g, tile.image(table), at, [Math.floor(x / shift), Math.floor(y / shift)], from, to);
        return at === level;
      }
      return false;
    }

    paint(context, g, image, level, [x, y], from, to) {
      const cell = 2 ** level, span = SIDE * cell;
      const sx = g.width / (g.c1 - g.c0), sy = g.height / (g.r1 - g.r0);
      const snap = (value) => Math.round(value * g.ratio) / g.ratio;
      const left = snap(g.left + (from[0] - g.c0) * sx), right = snap(g.left + (to[0] - g.c0) * sx);
      const top = snap(g.top + (from[1] - g.r0) * sy), bottom = snap(g.top + (to[1] - g.r0) * sy);
      context.fillStyle = this.hatch(context);
      context.fillRect(left, top, right - left, bottom - top);
      const small = Math.min(sx, sy) * cell * g.ratio < 1;
      context.imageSmoothingEnabled = small; context.imageSmoothingQuality = "medium";
      context.drawImage(image, (from[0] - x * span) / cell, (from[1] - y * span) / cell, (to[0] - from[0]) / cell, (to[1] - from[1]) / cell,
        left, top, right - left, bottom - top);
    }

    hatch(context) {
      const scheme = cipm.scheme();
      if (this.hatchOf === scheme) return this.pattern;
      const tile = cipm.el("canvas", { width: 8, height: 8 }), pen = tile.getContext("2d");
      pen.fillStyle = scheme === "dark" ? "#3b3f46" : "#d5d8dd"; pen.fillRect(0, 0, 8, 8);
      pen.strokeStyle = scheme === "dark" ? "#6f757f" : "#9aa0a8"; pen.lineWidth = 1.5;
      pen.beginPath();
      for (const shift of [-8, 0, 8]) { pen.moveTo(shift, 8); pen.lineTo(shift + 8, 0); }
      pen.stroke();
      this.hatchOf = scheme;
      return (this.pattern = context.createPattern(tile, "repeat"));
    }

    drawAxis(context, g, vertical) {
      const axis = vertical ? this.rows : this.cols;
      const [start, end] = vertical ? [g.r0, g.r1] : [g.c0, g.c1];
      const length = vertical ? g.height : g.width, scale = length / (end - start);
      this.drawStrip(context, g, axis, vertical, start, end, scale);
      context.fillStyle = this.ink.text;
      context.font = "10.5px system-ui, sans-serif";
      context.textBaseline = "middle";
      const unit = scale * axis.blocks, room = vertical ? 15 : 34;
      let step = 1;
      for (const factor of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000]) { step = factor; if (unit * factor >= room) break; }
      const edge = (vertical ? g.left - (axis.modules ? STRIP + GAP : 0) : g.top - (axis.modules ? STRIP + GAP : 0)) - 4;
      for (let at = Math.ceil(start / axis.blocks / step) * step; at * axis.blocks < end; at += step) {
        const middle = (vertical ? g.top : g.left) + ((at + 0.5) * axis.blocks - start) * scale;
        if (middle < (vertical ? g.top : g.left) || middle > (vertical ? g.top : g.left) + length) continue;
        const text = axis.label(Math.floor(at * axis.blocks));
        if (vertical) { context.textAlign = "right"; context.fillText(text, edge, middle, LEFT - 6); }
        else { context.textAlign = "center"; context.fillText(text, middle, edge - 5, Math.max(room - 4, unit)); }
      }
    }

    drawStrip(context, g, axis, vertical, start, end, scale) {
      if (!axis.modules) return;
      const low = Math.floor(start), high = Math.min(axis.positions, Math.ceil(end));
      const across = (vertical ? g.left : g.top) - STRIP - GAP;
      const paint = (from, to, module) => {
        if (module < 0) return;
        const a = Math.max(from, start), b = Math.min(to, end);
        context.fillStyle = cipm.moduleColour(module);
        const at = (vertical ? g.top : g.left) + (a - start) * scale;
        if (vertical) context.fillRect(across, at, STRIP, Math.max(0.4, (b - a) * scale));
        else context.fillRect(at, across, Math.max(0.4, (b - a) * scale), STRIP);
      };
      let run = low;
      for (let at = low + 1; at <= high; at += 1) {
        if (at === high || axis.module(at) !== axis.module(run)) { paint(run, at, axis.module(run)); run = at; }
      }
    }

    /* ---------- the cursor ---------- */
    cell() {
      const g = this.g;
      if (!this.cursor || !g) return null;
      const [px, py] = this.cursor;
      if (px < g.left || py < g.top || px >= g.left + g.width || py >= g.top + g.height) return null;
      const row = Math.min(this.rows.positions - 1, Math.floor(g.r0 + ((py - g.top) / g.height) * (g.r1 - g.r0)));
      const col = Math.min(this.cols.positions - 1, Math.floor(g.c0 + ((px - g.left) / g.width) * (g.c1 - g.c0)));
      return { row, col };
    }

    hover() {
      if (!this.g) return;
      const context = this.sized(this.overlay, this.g), cell = this.cell(), g = this.g;
      if (!cell) { this.hint(); return; }
      const [px, py] = this.cursor;
      context.strokeStyle = this.ink.text; context.globalAlpha = 0.45; context.lineWidth = 1;
      context.beginPath();
      context.moveTo(g.left, Math.round(py) + 0.5); context.lineTo(g.left + g.width, Math.round(py) + 0.5);
      context.moveTo(Math.round(px) + 0.5, g.top); context.lineTo(Math.round(px) + 0.5, g.top + g.height);
      context.stroke();
      this.tell(cell);
    }

    tell({ row, col }) {
      const level = this.shownLevel, span = 2 ** level;
      const tile = this.source.get(level, Math.floor(col / span / SIDE), Math.floor(row / span / SIDE));
      const value = tile ? tile.value(Math.floor(col / span) % SIDE, Math.floor(row / span) % SIDE) * (this.meta.scale || 1) : null;
      const kind = this.source.stat === "maxabs" ? "largest |x| of" : "mean of";
      const what = level === 0 ? "" : `${kind} ${span} \u00d7 ${span} `;
      const side = (axis, position) => {
        const part = axis.part(position), module = axis.module(position);
        const nodes = [cipm.el("b", {}, axis.label(position) + (part === null ? "" : `.${part}`))];
        if (module >= 0) {
          const dot = cipm.el("i", { class: "dot" }); dot.style.background = cipm.moduleColour(module);
          nodes.push(dot, `module ${module}`);
        }
        return nodes;
      };
      this.readout.replaceChildren("row ", ...side(this.rows, row), "  \u00b7  column ", ...side(this.cols, col), "  \u00b7  ",
        what, cipm.el("b", { class: "hm-value" }, value === null ? "\u2026" : cipm.number(value)));
    }

    hint() {
      if (this.readout.dataset.hint && !this.readout.querySelector("b")) return;
      this.readout.dataset.hint = "1";
      this.readout.replaceChildren(cipm.el("span", { class: "hm-hint" }, "Wheel zooms, drag moves, double click shows all"));
    }

    /* ---------- moving about ---------- */
    zoom(factor, fx, fy) {
      for (const [axis, at] of [[this.rows, fy], [this.cols, fx]]) {
        const [start, end] = axis.window, pivot = start + (end - start) * at;
        const span = Math.min(axis.size, Math.max(Math.min(2, axis.size), (end - start) * factor));
        axis.move(pivot - span * at, pivot + span * (1 - at));
      }
    }
    pan(dx, dy) {
      for (const [axis, by] of [[this.rows, dy], [this.cols, dx]]) {
        const [start, end] = axis.window;
        if (by) axis.move(start + (end - start) * by, end + (end - start) * by);
      }
    }
    reset() { if (this.rows) { this.rows.move(0, this.rows.size); this.cols.move(0, this.cols.size); } }
    fraction(event) {
      const box = this.stage.getBoundingClientRect(), g = this.g;
      const clamp = (value) => Math.min(1, Math.max(0, value));
      return [clamp((event.clientX - box.left - g.left) / g.width), clamp((event.clientY - box.top - g.top) / g.height)];
    }
    onWheel(event) {
      if (!this.g) return;
      event.preventDefault();
      const step = event.deltaMode === 1 ? event.deltaY * 16 : event.deltaY;
      this.zoom(Math.exp(Math.max(-400, Math.min(400, step)) * (event.ctrlKey ? 0.008 : 0.0016)), ...this.fraction(event));
    }
    onDown(event) {
      if (!this.g || event.button > 0) return;
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
      this.stage.setPointerCapture(event.pointerId);
    }
    onMove(event) {
      const box = this.stage.getBoundingClientRect(), before = this.pointers.get(event.pointerId);
      this.cursor = [event.clientX - box.left, event.clientY - box.top];
      if (before && this.pointers.size === 1) {
        this.pan((before[0] - event.clientX) / this.g.width, (before[1] - event.clientY) / this.g.height);
      } else if (before && this.pointers.size === 2) this.pinch(event);
      if (before) this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
      else if (this.g) this.hover();
    }
    pinch(event) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1], mine = this.pointers.get(event.pointerId);
      const gap = (point) => Math.max(10, Math.hypot(point[0] - other[0], point[1] - other[1]));
      const middle = { clientX: (event.clientX + other[0]) / 2, clientY: (event.clientY + other[1]) / 2 };
      this.zoom(gap(mine) / gap([event.clientX, event.clientY]), ...this.fraction(middle));
    }
    onUp(event) { this.pointers.delete(event.pointerId); }
    onKey(event) {
      if (!this.g || event.ctrlKey || event.metaKey || event.altKey) return;
      const moves = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] };
      if (moves[event.key]) this.pan(...moves[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoom(0.7, 0.5, 0.5);
      else if (event.key === "-" || event.key === "_") this.zoom(1 / 0.7, 0.5, 0.5);
      else if (event.key === "0" || event.key === "Home") this.reset();
      else return;
      event.preventDefault();
      event.stopPropagation();
    }
  }
  Heatmap.all = new Set();

  /* Zoom every viewer that shows the group's axis to one module; in an order that scatters it, go to the modules order. */
  cipm.zoomToModule = function (group, module) {
    const axes = [...Heatmap.all].filter((map) => map.source && !map.node.hidden && map.props.pane === "reordered")
      .flatMap((map) => [map.rows, map.cols]).filter((axis) => axis.title === group && axis.modules);
    const found = axes.map((axis) => [axis, axis.extent(module)]).filter(([, extent]) => extent);
    if (!found.length || !found.every(([, extent]) => extent.whole)) return false;
    for (const [axis, extent] of found) axis.move(extent.start, extent.end);
    return true;
  };

  cipm.component("Heatmap", Heatmap);
})();
