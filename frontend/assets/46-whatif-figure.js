/* The two drawings of a what-if: a group's curve as a thumbnail, and the whole model as loss against size with its error band. */
(function () {
  "use strict";
  const cipm = window.cipm, SVG = "http://www.w3.org/2000/svg";
  const DECADES = 4, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 34, THUMB = [84, 22];
  const POWERS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";

  function svg(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const power = (exponent) => `10${exponent < 0 ? "\u207b" : ""}${[...String(Math.abs(exponent))].map((digit) => POWERS[digit]).join("")}`;
  const path = (points) => points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");

  /* A group's predicted rise against the units kept, logarithmic, `most` at the top; all groups share the scale. */
  class Thumbnail {
    constructor(whatif, at, kind, most) {
      const [width, height] = THUMB, rises = whatif.groups[at].rises[kind], size = whatif.whole[at];
      this.x = (units) => 3 + ((width - 6) * units) / size;
      this.y = (units) => {
        const rise = rises[units];
        return rise > 0 && most > 0 ? 3 + Math.min(1, Math.max(0, -Math.log10(rise / most) / DECADES)) * (height - 6) : height - 3;
      };
      const step = Math.max(whatif.step(at), Math.ceil(size / 80)), units = [];
      for (let kept = size; kept > 0; kept -= step) units.push(kept);
      this.dot = svg("circle", { r: 2.6, class: "wi-dot" });
      this.node = svg("svg", { class: "wi-thumb", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
        svg("path", { class: "wi-line", d: path(units.map((kept) => [this.x(kept), this.y(kept)])) }), this.dot);
    }
    show(units) { this.dot.setAttribute("cx", this.x(units).toFixed(1)); this.dot.setAttribute("cy", this.y(units).toFixed(1)); }
  }

  /* Loss against size. `front`: choices; `free`: those without locks, which set the scale; `points`: whole networks that were
     measured, [{count, rise, words}]. */
  class Figure {
    constructor(node, choose) {
      this.node = node; this.choose = choose;
      this.readout = cipm.el("p", { class: "wi-readout quiet" });
      this.svg = svg("svg", { class: "wi-figure", role: "img" });
      node.replaceChildren(this.svg, this.readout);
      this.svg.addEventListener("pointermove", (event) => this.hover(event));
      this.svg.addEventListener("pointerleave", () => this.hover(null));
      this.svg.addEventListener("click", (event) => { const found = this.under(event); if (found) this.choose(found.choice); });
      this.sizer = new ResizeObserver(() => { if (this.data) this.draw(this.data); });
      this.sizer.observe(node);
    }
    destroy() { this.sizer.disconnect(); }

    /* The part that stays while a slider moves. */
    draw(data) {
      this.data = data;
      const width = Math.max(260, this.node.clientWidth || 420), height = 300, { whatif, kind, by, front, free } = data;
      this.size = [width, height];
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.svg.setAttribute("height", height);
      const drawn = (choices) => choices.map((choice) => ({ choice, x: choice.count, rise: whatif.rise(kind, choice.sizes) }));
      this.line = drawn(front);
      const unlocked = front === free ? this.line : drawn(free);
      const rises = [...unlocked.map((point) => point.rise), ...data.points.map((point) => point.rise)].filter((rise) => rise > 0);
      const high = rises.length ? Math.max(...rises) : 1, band = (whatif.session.band || {})[kind];
      this.top = Math.log10(high * (band ? band.p90 : 1.2));
      this.bottom = Math.max(this.top - DECADES, Math.log10(Math.max(1e-12, Math.min(...rises, high))) - 0.2);
      if (this.top - this.bottom < 1) this.bottom = this.top - 1;
      const whole = free[0].count, least = free.at(-1).count, pad = 0.02 * (whole - least || whole);
      this.low = least - pad; this.high = whole + pad;
      this.moving = svg("g", {}); this.cursor = svg("g", {});
      this.svg.replaceChildren(this.axes(by, kind), ...this.bands(band), front === free ? "" : svg("path", { class: "wi-front wi-free", d: this.path(unlocked) }),
        svg("path", { class: "wi-front", d: this.path(this.line) }),
        ...data.points.map((point) => this.mark("wi-known", point)), this.cursor, this.moving);
      if (this.marks) this.show(this.marks);
      this.svg.setAttribute("aria-label", `Predicted rise of ${data.words} against ${by}, from the whole model to the smallest.`);
    }
    path(points) { return path(points.map((point) => [this.x(point.x), this.y(point.rise)])); }
    x(count) { return LEFT + ((count - this.low) / (this.high - this.low)) * (this.size[0] - LEFT - RIGHT); }
    y(rise) {
      const share = rise > 0 ? (Math.log10(rise) - this.bottom) / (this.top - this.bottom) : 0;
      return this.size[1] - BOTTOM - Math.min(1, Math.max(0, share)) * (this.size[1] - TOP - BOTTOM);
    }
    axes(by, kind) {
      const group = svg("g", { class: "wi-axes" }), [width, height] = this.size, whole = this.data.free[0].count;
      for (let decade = Math.ceil(this.bottom); decade <= this.top; decade += 1) {
        const y = this.y(10 ** decade);
        group.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: y, y2: y }), svg("text", { x: LEFT - 6, y: y + 3.5, "text-anchor": "end" }, power(decade)));
      }
      for (const share of [0.1, 0.25, 0.5, 0.75, 1]) {
        const x = this.x(share * whole);
        if (x < LEFT + 4) continue;
        group.append(svg("line", { x1: x, x2: x, y1: TOP, y2: height - BOTTOM }),
          svg("text", { x: Math.min(x, width - 18), y: height - BOTTOM + 15, "text-anchor": "middle" }, `${Math.round(100 * share)}\u202f%`));
      }
      group.append(svg("text", { x: (LEFT + width) / 2, y: height - 3, "text-anchor": "middle" }, `${by} kept`),
        svg("text", { x: 0, y: 0, transform: `translate(10,${(height - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, kind === "kl" ? "KL to the original" : "rise of the loss"));
      return group;
    }
    bands(band) {
      if (!band) return [];
      return [band.p90, band.median].map((factor) => {
        const edge = (by) => this.line.map((point) => [this.x(point.x), this.y(point.rise * by)]);
        return svg("path", { class: "wi-band", d: `${path([...edge(factor), ...edge(1 / factor).reverse()])}Z` });
      });
    }
    mark(name, { count, rise, words }) {
      const below = rise <= 10 ** this.bottom, x = this.x(count), y = this.y(rise);
      const shape = below ? svg("path", { d: `M${x - 4},${y - 7}h8l-4,7z`, class: name }) : svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 4.5, class: name });
      shape.append(svg("title", {}, words + (below ? " (below the scale)" : "")));
      return shape;
    }
    /* What moves: marks [{class, count, rise, words}], the last on top. */
    show(marks) {
      this.marks = marks;
      if (this.moving) this.moving.replaceChildren(...marks.map((mark) => this.mark(mark.class, mark)));
    }

    /* ---------- the pointer ---------- */
    under(event) {
      if (!this.line) return null;
      const box = this.svg.getBoundingClientRect(), scale = this.size[0] / box.width;
      const count = this.low + (((event.clientX - box.left) * scale - LEFT) / (this.size[0] - LEFT - RIGHT)) * (this.high - this.low);
      return this.line.reduce((best, point) => (Math.abs(point.x - count) < Math.abs(best.x - count) ? point : best));
    }
    hover(event) {
      const found = event && this.under(event);
      this.cursor && this.cursor.replaceChildren();
      this.readout.textContent = "\u00a0";
      if (!found) return;
      const x = this.x(found.x);
      this.cursor.append(svg("line", { class: "wi-cross", x1: x, x2: x, y1: TOP, y2: this.size[1] - BOTTOM }));
      this.readout.textContent = this.data.tell(found);
    }
  }
  cipm.Thumbnail = Thumbnail;
  cipm.WhatIfFigure = Figure;
})();
