/* Which units a what-if takes away, marked on the heatmaps: dimmed and hatched, with a legend and a switch. The address says which
   what-if: `sizes` (of all groups, see 45), `whatif` (a saved one's id), or `keep` (units of the chosen group); `marks=off` hides. */
(function () {
  "use strict";
  const cipm = window.cipm, SIDE = 6;

  /* The what-if that the address names, as {whatif, sizes, name}; null where it names none. */
  async function asked(analysis, share) {
    const { sizes, whatif: id, keep, group } = cipm.view.values;
    if (!sizes && !id && !keep) return null;
    const whatif = await cipm.session(analysis, share);
    if (sizes) return { whatif, sizes: whatif.decode(sizes), name: "this what-if" };
    if (id) {
      const list = await cipm.ask("GET", `${analysis}/whatifs${share ? `?${new URLSearchParams({ share })}` : ""}`);
      const found = list.find((item) => item.id === id);
      return found ? { whatif, sizes: whatif.sizes(found.keep), name: `\u201c${found.name}\u201d` } : null;
    }
    const panel = document.querySelector(".group[data-group]"), name = group || (panel && panel.dataset.group);
    if (!whatif.at.has(name)) return null;
    return { whatif, sizes: whatif.sizes({ [name]: Number(keep) || whatif.whole[whatif.at.get(name)] }), name: "this what-if" };
  }

  class Marks {
    /* `redraw` is called when something is there to draw; `node` takes the legend. */
    constructor(node, redraw) { this.node = node; this.redraw = redraw; this.found = null; this.gone = new Map(); node.hidden = true; }

    async refresh({ src, share }) {
      const { sizes, whatif, keep, group, marks } = cipm.view.values, wanted = JSON.stringify([src, sizes, whatif, keep, group]);
      if (this.wanted !== wanted) {
        this.wanted = wanted;
        let found = null;
        try {
          found = await asked(src.split("/matrices/")[0], share);
        } catch (problem) {
          if (!problem.message || problem instanceof Error) throw problem;  // without a session there is nothing to mark
        }
        if (this.wanted !== wanted) return;
        this.found = found; this.gone.clear();
        this.redraw();
      }
      if (this.shownAs !== marks) { this.shownAs = marks; this.redraw(); }
    }
    of(axis) {
      const { found } = this;
      if (!found || !found.whatif.at.has(axis.title)) return null;
      if (!this.gone.has(axis.title)) this.gone.set(axis.title, found.whatif.removed(axis.title, found.sizes));
      return this.gone.get(axis.title);
    }

    /* ---------- the legend ---------- */
    tell(rows, cols) {
      const sides = rows.title === cols.title ? [["unit", rows]] : [["row", rows], ["column", cols]];
      const parts = sides.map(([what, axis]) => [what, this.of(axis), axis.units]).filter(([, gone]) => gone && gone.size);
      this.node.hidden = !parts.length;
      const words = parts.map(([what, gone, all]) => `${gone.size.toLocaleString("en")} of ${all.toLocaleString("en")} ${what}s`).join(", ");
      if (!parts.length || this.words === words + this.shownAs) return;
      this.words = words + this.shownAs;
      const check = cipm.el("input", { type: "checkbox", checked: this.shownAs !== "off" });
      check.addEventListener("change", () => cipm.view.patch({ marks: check.checked ? null : "off" }, false));
      this.node.replaceChildren(cipm.el("label", {}, check, cipm.el("i", { class: "hm-swatch" }), `${words} go in ${this.found.name}`));
    }

    /* ---------- on the canvas ---------- */
    /* Runs of removed positions in view as [from, to]. */
    runs(axis, gone, start, end) {
      const found = [], high = Math.min(axis.positions, Math.ceil(end));
      let from = -1;
      for (let at = Math.floor(start); at <= high; at += 1) {
        const out = at < high && gone.has(axis.unit(at));
        if (out && from < 0) from = at;
        if (!out && from >= 0) { found.push([from, at]); from = -1; }
      }
      return found;
    }
    draw(context, g, rows, cols) {
      this.tell(rows, cols);
      const [r, c] = [this.of(rows), this.of(cols)];
      if (this.shownAs === "off" || !((r && r.size) || (c && c.size))) return;
      const sx = g.width / (g.c1 - g.c0), sy = g.height / (g.r1 - g.r0);
      context.beginPath();
      for (const [from, to] of r ? this.runs(rows, r, g.r0, g.r1) : []) context.rect(g.left, g.top + (from - g.r0) * sy, g.width, (to - from) * sy);
      for (const [from, to] of c ? this.runs(cols, c, g.c0, g.c1) : []) context.rect(g.left + (from - g.c0) * sx, g.top, (to - from) * sx, g.height);
      context.save();
      context.globalAlpha = 0.74; context.fillStyle = getComputedStyle(this.node).getPropertyValue("--paper"); context.fill();
      context.globalAlpha = 1; context.fillStyle = this.hatch(context); context.fill();
      context.restore();
    }
    hatch(context) {
      const scheme = cipm.scheme();
      if (this.hatchOf === scheme) return this.pattern;
      const tile = cipm.el("canvas", { width: SIDE, height: SIDE }), pen = tile.getContext("2d");
      pen.strokeStyle = scheme === "dark" ? "rgba(255, 255, 255, 0.20)" : "rgba(0, 0, 0, 0.20)"; pen.lineWidth = 1;
      pen.beginPath();
      for (const shift of [-SIDE, 0, SIDE]) { pen.moveTo(shift, SIDE); pen.lineTo(shift + SIDE, 0); }
      pen.stroke();
      this.hatchOf = scheme;
      return (this.pattern = context.createPattern(tile, "repeat"));
    }
  }
  cipm.Marks = Marks;
})();
