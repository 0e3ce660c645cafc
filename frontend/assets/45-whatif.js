/* What-ifs in numbers, without a page: counts, predictions, the front, the address. The same arithmetic as the engine's
   (cipm/allocation.py). A what-if is `sizes`: the units kept of every group, in the session's order. */
(function () {
  "use strict";
  const cipm = (window.cipm = window.cipm || {});

  /* A predicted rise through whole networks that were measured, `points` [what the groups lose together, measured], both rising:
     straight lines in the logarithms, proportional outside them. */
  function joined(points, total) {
    if (total <= 0 || !points.length) return total;
    const x = Math.log(total), line = points.map((point) => point.map(Math.log)), [first, last] = [line[0], line.at(-1)];
    if (x <= first[0]) return Math.exp(first[1] + x - first[0]);
    if (x >= last[0]) return Math.exp(last[1] + x - last[0]);
    const at = line.findIndex(([right]) => right >= x), [a, b] = [line[at - 1], line[at]];
    return Math.exp(a[1] + ((b[1] - a[1]) * (x - a[0])) / (b[0] - a[0]));
  }

  /* Twice of what the front loses at as many parameters is as far off it as counts (cipm/calibration.py). */
  const FAR = Math.log(2), LEAST_RISE = 1e-9;

  /* The logarithm of how many times more than the front at this count is lost, at least 0; `frontier` [count, total] rises. */
  function excess(frontier, count, total) {
    if (!frontier.length) return 0;
    const at = frontier.findIndex(([right]) => right >= count), log = (value) => Math.log(Math.max(value, LEAST_RISE));
    const [a, b] = at < 0 ? [frontier.at(-1), frontier.at(-1)] : [frontier[Math.max(at - 1, 0)], frontier[at]];
    const share = b[0] > a[0] ? (count - a[0]) / (b[0] - a[0]) : 0;
    return Math.max(log(total) - log(a[1]) - (log(b[1]) - log(a[1])) * share, 0);
  }

  class WhatIf {
    constructor(session) {
      this.session = session;
      this.groups = session.groups;
      this.at = new Map(session.groups.map((group, at) => [group.name, at]));
      this.whole = session.groups.map((group) => group.size);
      this.kinds = session.kinds;
      this.frontier = session.frontier;
      /* The other way of cutting the same stream, by coordinate or by direction: a what-if does one of both. */
      this.other = session.groups.map((group) => (group.of ? this.at.get(group.of) : session.groups.findIndex((one) => one.of === group.name)));
      this.counts = Object.fromEntries(Object.entries(session.counts).map(([name, count]) => [name, this.prepared(count)]));
    }
    /* Axes as [[position of the group, share], …]; what never moves belongs to no axis. */
    prepared({ fixed, terms, unit }) {
      const found = terms.map(([size, axes]) => [size, axes.map((axis) => Object.entries(axis)
        .filter(([name]) => this.at.has(name)).map(([name, share]) => [this.at.get(name), share])).filter((axis) => axis.length)]);
      const of = this.groups.map(() => []);
      for (const term of found) for (const at of new Set(term[1].flat().map(([group]) => group))) of[at].push(term);
      return { fixed, terms: found, of, unit: unit || "" };
    }

    /* ---------- how much is left ---------- */
    sum(terms, sizes) {
      let total = 0;
      for (const [size, axes] of terms) {
        let left = size;
        for (const axis of axes) {
          let gone = 0;
          for (const [group, share] of axis) gone += share * (1 - sizes[group] / this.whole[group]);
          left *= 1 - gone;
        }
        total += left;
      }
      return total;
    }
    count(name, sizes) { return this.counts[name].fixed + this.sum(this.counts[name].terms, sizes); }
    /* What a group saves where the others are as they are. */
    saved(name, sizes, at) {
      const terms = this.counts[name].of[at], grown = [...sizes];
      grown[at] = this.whole[at];
      return this.sum(terms, grown) - this.sum(terms, sizes);
    }

    /* ---------- what it is predicted to lose ---------- */
    total(kind, sizes) {
      const { power } = this.session;
      let together = 0;
      for (let at = 0; at < sizes.length; at += 1) together += this.groups[at].rises[kind][sizes[at]] ** power;
      return together ** (1 / power);
    }
    /* How far off the front, as a share of what counts; with locks `frontier` is that of the groups left free. */
    far(sizes) {
      return Math.min(excess(this.frontier, this.count("parameters", sizes), this.total(this.kinds[0], sizes)) / FAR, 1);
    }
    rise(kind, sizes, far = this.far(sizes)) {
      const { front = [], off = [] } = this.session.whole[kind] || {}, total = this.total(kind, sizes);
      return total > 0 ? joined(front, total) ** (1 - far) * joined(off, total) ** far : total;
    }
    /* Predicted values with the range that nine of ten held-back networks were in: {kind: {value, low, high, near}}. */
    predicted(sizes) {
      const far = this.far(sizes);
      return Object.fromEntries(this.kinds.map((kind) => {
        const base = kind === "loss" ? this.session.baseline.loss : 0, rise = this.rise(kind, sizes, far);
        const band = (this.session.band || {})[kind] || null;
        const range = (factor) => (band ? [base + rise / factor, base + rise * factor] : null);
        return [kind, { value: base + rise, rise, range: band && range(band.p90), near: band && range(band.median) }];
      }));
    }

    /* ---------- sizes ---------- */
    step(at) { return this.groups[at].blocks || 1; }
    /* The fewest units that a group can keep: a router chooses among so many. */
    least(at) { return Math.max(this.groups[at].least || 1, this.step(at)); }
    snap(at, units) {
      const step = this.step(at);
      return Math.min(this.whole[at], Math.max(this.least(at), Math.round(units / step) * step));
    }
    sizes(keep) { return this.groups.map((group, at) => (group.name in keep ? this.snap(at, keep[group.name]) : group.size)); }
    keep(sizes) { return Object.fromEntries(this.groups.flatMap((group, at) => (sizes[at] < group.size ? [[group.name, sizes[at]]] : []))); }
    isWhole(sizes) { return sizes.every((units, at) => units === this.whole[at]); }

    /* In the address: units of every group between dots, nothing for a whole one; numbers of groups for those locked. */
    encode(sizes) { return sizes.map((units, at) => (units < this.whole[at] ? units : "")).join(".").replace(/\.+$/, ""); }
    decode(text) {
      const parts = (text || "").split(".");
      return this.whole.map((size, at) => (/^\d+$/.test(parts[at] || "") ? this.snap(at, Number(parts[at])) : size));
    }
    encodeLocks(locked) { return [...locked].sort((a, b) => a - b).join("."); }
    decodeLocks(text) { return new Set((text || "").split(".").filter((part) => /^\d+$/.test(part) && Number(part) < this.whole.length).map(Number)); }

    /* ---------- streams by direction ---------- */
    isDirection(at) { return Boolean(this.groups[at].of); }
    /* Sizes with this group at so many units: the same stream cut the other way becomes whole. */
    moved(sizes, at, units) {
      const made = [...sizes], other = this.other[at];
      made[at] = this.snap(at, units);
      if (other >= 0 && made[at] < this.whole[at]) made[other] = this.whole[other];
      return made;
    }
    /* The streams that these sizes cut by direction. */
    turned(sizes) { return this.groups.flatMap((group, at) => (group.of && sizes[at] < group.size ? [at] : [])); }

    /* ---------- the front ---------- */
    /* Choices [{sizes, count}] from the whole model to the smallest, from the engine's [{keep, count}]. */
    front(choices) { return choices.map(({ keep, count }) => ({ sizes: this.sizes(keep), count })); }
    /* The choice whose count is nearest. */
    nearest(front, count) {
      let best = front[0];
      for (const choice of front) if (Math.abs(choice.count - count) < Math.abs(best.count - count)) best = choice;
      return best;
    }
    /* The next choice that is smaller (by: 1) or larger (-1) than `count`, else the last one there is. */
    beside(front, count, by) {
      const slack = 1e-9 * front[0].count;
      const found = by > 0 ? front.find((choice) => choice.count < count - slack) : front.findLast((choice) => choice.count > count + slack);
      return found || (by > 0 ? front.at(-1) : front[0]);
    }

    /* Which units of a group go: of what it loses by itself, and with the units that carry it. */
    removed(name, sizes) {
      const at = this.at.get(name), group = this.groups[at];
      const gone = new Set(at === undefined ? [] : group.removal_order.slice(0, group.size - sizes[at]));
      const outer = group && group.level ? this.groups[this.at.get(group.level)] : null;
      if (!outer || (group.size % outer.size)) return gone;
      const each = group.size / outer.size;
      for (const unit of this.removed(outer.name, sizes)) for (let i = 0; i < each; i += 1) gone.add(unit * each + i);
      return gone;
    }
  }
  cipm.WhatIf = WhatIf;

  /* ---------- sessions, fetched once ---------- */
  const sessions = new Map();
  cipm.session = async function (analysis, share) {
    const address = `${analysis}/whatif${share ? `?${new URLSearchParams({ share })}` : ""}`;
    if (!sessions.has(address)) {
      const response = await fetch(address).catch(() => null);
      if (!response || !response.ok) throw await cipm.problem(response);
      if (sessions.size > 3) sessions.clear();
      sessions.set(address, new WhatIf(await response.json()));
    }
    return sessions.get(address);
  };

  /* ---------- numbers in words, as frontend/words.py has them ---------- */
  const THIN = "\u202f", NONE = "\u2013";
  const decimals = (value) => String(Number(value.toPrecision(3)));
  cipm.compact = function (value) {
    for (const [limit, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (value >= limit) return `${decimals(value / limit)}${THIN}${unit}`;
    return String(Math.round(value));
  };
  cipm.percent = (share, digits = 1) => (share === null || share === undefined ? NONE : `${(100 * share).toFixed(digits)}${THIN}%`.replace("-", "\u2212"));
  cipm.short = function (value) {
    if (value === null || value === undefined || Number.isNaN(value)) return NONE;
    if (value === 0) return "0";
    const size = Math.abs(value), text = size >= 1e-3 && size < 1e5 ? decimals(value) : value.toExponential(1);
    return text.replaceAll("-", "\u2212");
  };
  /* As cipm.short with its last zeros, so that columns stay in line: 0.110, not 0.11. */
  cipm.steady = function (value) {
    const size = Math.abs(value);
    return size >= 1e-3 && size < 1000 ? value.toPrecision(3).replace("-", "\u2212") : cipm.short(value);
  };
  cipm.whole = (value) => Math.round(value).toLocaleString("en").replaceAll(",", THIN);
  cipm.amount = (value, unit) => (unit === "bytes" ? cipm.bytes(value) : cipm.compact(value));
})();
