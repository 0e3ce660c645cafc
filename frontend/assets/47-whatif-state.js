/* What is chosen in a what-if session: sizes, locks, what the slider walks along; undo and redo; the address that reproduces it.
   `changed("move")` while a slider moves, "rest" when it stops, "front" when another front is there. */
(function () {
  "use strict";
  const cipm = window.cipm, PAST = 200, FINE = 1000;

  class WhatIfState {
    constructor(whatif, ask, changed) {
      whatif.frontier = whatif.session.frontier;
      this.whatif = whatif; this.ask = ask; this.changed = changed;
      this.past = []; this.future = [];
      const fronts = whatif.session.fronts;
      this.walks = ["parameters", "flops"].filter((name) => (fronts[name] || []).length);
      this.fronts = new Map(this.walks.map((name) => [`${name}|`, { choices: whatif.front(fronts[name]), frontier: whatif.session.frontier }]));
      this.fromAddress(cipm.view.values);
    }

    /* ---------- the address ---------- */
    fromAddress(values) {
      this.by = this.walks.includes(values.by) ? values.by : this.walks[0];
      this.kind = this.whatif.kinds.includes(values.draw) ? values.draw : this.whatif.kinds[0];
      this.sizes = this.whatif.decode(values.sizes);
      this.turned = new Set(this.whatif.turned(this.sizes));
      this.locked = this.whatif.decodeLocks(values.locked);
      this.resting = this.snapshot();
    }
    get encoded() { return { sizes: this.whatif.encode(this.sizes), locked: this.whatif.encodeLocks(this.locked) }; }
    /* Follow the address where it was changed by something else (back, a control, a link). */
    addressed(values, before) {
      const { sizes, locked } = this.encoded, changed = ["sizes", "locked"].some((name) => values[name] !== before[name]);
      const other = changed && ((values.sizes || "") !== sizes || (values.locked || "") !== locked);
      const kept = [this.sizes, this.locked, this.resting, this.turned], drawn = [this.by, this.kind].join();
      this.fromAddress(values);
      if (other) this.changed("rest");
      else [this.sizes, this.locked, this.resting, this.turned] = kept;
      if (other || drawn !== [this.by, this.kind].join()) this.fetch();
    }

    /* ---------- changes ---------- */
    snapshot() { return { sizes: this.sizes, locked: this.locked }; }
    same(one, other) { return one.sizes.every((units, at) => units === other.sizes[at]) && [...one.locked].join() === [...other.locked].join(); }
    set(sizes) { this.sizes = sizes; this.changed("move"); }
    move(at, units) {
      if (this.locked.has(at) || this.locked.has(this.whatif.other[at])) return;
      const sizes = this.whatif.moved(this.sizes, at, units), turned = new Set(this.turned);
      if (this.whatif.isDirection(at)) turned.add(at); else turned.delete(this.whatif.other[at]);
      this.turned = turned;
      this.set(sizes);
    }
    toggleLock(at) {
      const locked = new Set(this.locked), put = locked.has(at) ? "delete" : "add";
      for (const one of [at, this.whatif.other[at]]) if (one >= 0) locked[put](one);
      this.locked = new Set([...locked].sort((a, b) => a - b));
      this.changed("move"); this.rest();
    }
    /* A what-if as it was saved, advised or undone. */
    take(sizes, locked = new Set()) { this.sizes = sizes; this.locked = locked; this.turned = new Set(this.whatif.turned(sizes)); this.changed("move"); this.rest(); }
    /* The slider has stopped: one step to undo, an address, another front where locks changed. */
    rest() {
      if (this.same(this.snapshot(), this.resting)) return;
      this.past.push(this.resting); this.past.splice(0, this.past.length - PAST);
      this.future = [];
      this.settle();
    }
    settle() { this.resting = this.snapshot(); cipm.view.patch(this.encoded, false); this.fetch(); this.changed("rest"); }
    undo() { this.shift(this.past, this.future); }
    redo() { this.shift(this.future, this.past); }
    shift(from, to) {
      if (!from.length) return;
      to.push(this.resting);
      ({ sizes: this.sizes, locked: this.locked } = from.pop());
      this.turned = new Set(this.whatif.turned(this.sizes));
      this.changed("move"); this.settle();
    }

    /* ---------- the model's slider: along the front, locked groups as they are ---------- */
    get key() { return [...[...this.locked].map((at) => `${at}:${this.sizes[at]}`), ...[...this.turned].filter((at) => !this.locked.has(at)).map((at) => `t${at}`)].join(); }
    get free() { return this.fronts.get(`${this.by}|`).choices; }
    get front() { return (this.fronts.get(`${this.by}|${this.key}`) || this.fronts.get(`${this.by}|`)).choices; }
    /* What is asked of a front: locked groups, those at a size of one's own, streams by direction. */
    get asked() {
      const name = (at) => this.whatif.groups[at].name, whole = (at) => this.sizes[at] === this.whatif.whole[at], locked = [...this.locked];
      return { locked: locked.filter(whole).map(name), sizes: Object.fromEntries(locked.filter((at) => !whole(at)).map((at) => [name(at), this.sizes[at]])), turned: [...this.turned].map(name) };
    }
    held(sizes) { return sizes.map((units, at) => (this.locked.has(at) ? this.sizes[at] : units)); }
    get range() { const { front } = this; return [front.at(-1).count, front[0].count]; }
    /* The slider's place, 0 the smallest and 1,000 the whole of what is not locked. */
    get place() {
      const [low, high] = this.range;
      return Math.round(FINE * Math.min(1, Math.max(0, (this.whatif.count(this.by, this.sizes) - low) / (high - low || 1))));
    }
    walk(place) {
      const [low, high] = this.range;
      this.set(this.held(this.whatif.nearest(this.front, low + (place / FINE) * (high - low)).sizes));
    }
    step(by) { this.set(this.held(this.whatif.beside(this.front, this.whatif.count(this.by, this.sizes), by).sizes)); }
    /* Ask for the front with these locks; until it is there, the unlocked one is walked with locked groups held. */
    async fetch() {
      const { by, key } = this, name = `${by}|${key}`;
      if (!this.fronts.has(name)) {
        const query = new URLSearchParams({ count: by }), { locked, sizes, turned } = this.asked;
        for (const group of locked) query.append("locked", group);
        for (const [group, units] of Object.entries(sizes)) query.append("size", `${group}:${units}`);
        for (const group of turned) query.append("turned", group);
        const found = await this.ask(query);
        if (!found) return;
        this.fronts.set(name, { choices: this.whatif.front(found.choices), frontier: found.frontier });
      }
      if (this.by !== by || this.key !== key) return;
      this.whatif.frontier = this.fronts.get(name).frontier;
      this.changed("front");
    }
  }
  cipm.WhatIfState = WhatIfState;
})();
