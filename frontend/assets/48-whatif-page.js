/* The what-if session: one slider for the model and one for every group. Predictions are made here, from what the engine left
   (cipm.WhatIf), so that they answer while a slider moves; measuring, saving and exporting ask the API (49). */
(function () {
  "use strict";
  const cipm = window.cipm, { el } = cipm, DASH = "\u2013", FINE = 1000;
  const COUNTS = { parameters: "Parameters", flops: "FLOPs of one row", bytes: "Memory of the weights" };
  const LOSSES = { cross_entropy: "Cross-entropy", mean_squared_error: "Mean squared error", kl_to_original: "KL to the original", relative_error: "Relative error of the outputs" };
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const fill = (cell, text) => { put(cell, text); cell.classList.toggle("wi-none", text === DASH); };
  const button = (text, title, action) => el("button", { type: "button", class: "cipm-button", title, onclick: action }, text);
  const known = (value) => value !== null && value !== undefined;

  class WhatIfSession {
    constructor(node, props) {
      this.node = node; this.props = props; this.node.classList.add("wi"); this.moves = node.moves = [];
      this.onKey = (event) => this.key(event);
      document.addEventListener("keydown", this.onKey);
      this.undone = [cipm.view.subscribe((values, before) => this.addressed(values, before)), () => document.removeEventListener("keydown", this.onKey)];
      this.load();
    }
    update(props) { this.props = props; }
    destroy() {
      this.gone = true;
      this.undone.forEach((action) => action());
      if (this.watcher) this.watcher.disconnect();
      for (const part of [this.figure, this.measuring, this.timing, this.exporting]) if (part) part.destroy();
    }
    /* The address of a route of this analysis. */
    address(rest = "", query = {}) {
      const all = new URLSearchParams(query);
      if (this.props.share) all.set("share", this.props.share);
      return `${this.props.src}${rest}${all.size ? `?${all}` : ""}`;
    }

    async load() {
      this.node.dataset.state = "loading";
      this.node.replaceChildren(el("p", { class: "quiet", role: "status" }, "Reading the session\u2026"));
      try {
        this.whatif = await cipm.session(this.props.src, this.props.share);
      } catch (problem) {
        this.refused(problem);
        return;
      }
      if (this.gone) return;
      if (!this.whatif.groups.length) this.nothing();
      else this.start();
    }
    refused(problem) {
      if (!problem.message || problem instanceof Error) throw problem;
      this.node.dataset.state = "error";
      this.node.replaceChildren(el("div", { class: "empty" }, el("h3", {}, "There is no what-if session"), el("p", {}, problem.message), el("p", {}, problem.fix || ""),
        button("Try again", "Ask the server again", () => this.load())));
    }
    nothing() {
      this.node.dataset.state = "empty";
      this.node.replaceChildren(el("div", { class: "empty" }, el("h3", {}, "No group of this model can be made smaller"),
        ...(this.whatif.session.notes || []).map((note) => el("p", {}, note)), this.reasons()));
    }

    /* ---------- the page ---------- */
    start() {
      this.state = new cipm.WhatIfState(this.whatif, (query) => this.askFront(query), (what) => this.changed(what));
      this.beside = null;
      this.measuring = new cipm.WhatIfMeasuring(this);
      this.timing = new cipm.WhatIfTiming(this);
      this.saved = new cipm.WhatIfSaved(this);
      this.exporting = this.props.readOnly ? null : new cipm.WhatIfExport(this);
      this.status = el("p", { class: "wi-status", role: "status" });
      this.node.replaceChildren(
        el("div", { class: "wi-main" }, this.buildModel(), this.buildGroups()),
        el("aside", { class: "wi-side", "aria-label": "Overview" }, this.buildFigure(), this.buildAdvice(), this.saved.node, this.buildNotes()));
      this.watchRows(); this.drawFigure(); this.paint(); this.linkRows(); this.state.fetch();
      this.measuring.load(); this.timing.load(); this.saved.load();
      this.node.dataset.state = "ready";
      this.reveal(cipm.view.values.group);
    }
    /* Tell a refusal where it is seen, and give nothing. */
    async ask(method, rest, body, query) {
      try {
        return await cipm.ask(method, this.address(rest, query), body);
      } catch (problem) {
        if (!problem.message || problem instanceof Error) throw problem;
        this.say(`${problem.message} ${problem.fix || ""}`, true);
        return undefined;
      }
    }
    askFront(query) { return this.ask("GET", "/whatif/front", null, query); }
    say(text, bad) { put(this.status, text); this.status.classList.toggle("bad", Boolean(bad)); }

    seg(label, options, current, choose) {
      const node = el("div", { class: "seg", role: "radiogroup", "aria-label": label });
      const mark = (value) => { for (const other of node.children) { other.setAttribute("aria-checked", String(other.dataset.value === value)); other.tabIndex = other.dataset.value === value ? 0 : -1; } };
      for (const [value, text] of Object.entries(options)) node.append(el("button", { type: "button", role: "radio", "data-value": value, onclick: () => { mark(value); choose(value); } }, text));
      node.addEventListener("keydown", (event) => {
        const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key], next = by && [...node.children][[...node.children].indexOf(event.target) + by];
        if (next) { event.preventDefault(); next.click(); next.focus(); }
      });
      mark(current);
      return node;
    }
    buildModel() {
      this.slider = el("input", { type: "range", class: "wi-range wide", min: 0, max: FINE, step: 1, "aria-label": "Size of the whole model" });
      this.slider.addEventListener("input", () => this.timed(() => this.state.walk(Number(this.slider.value))));
      this.slider.addEventListener("change", () => this.state.rest());
      this.slider.addEventListener("keydown", (event) => this.stepWalk(event));
      this.ends = [el("span", {}), el("output", { class: "wi-share" }), el("span", {})];
      this.undoButton = button("Undo", "Undo (Ctrl+Z)", () => this.state.undo());
      this.redoButton = button("Redo", "Redo (Ctrl+Shift+Z)", () => this.state.redo());
      this.wholeButton = button("Keep everything", "Every group whole, no locks", () => this.state.take(this.whatif.whole));
      const by = this.seg("The slider walks along", Object.fromEntries(this.state.walks.map((name) => [name, COUNTS[name].split(" ")[0]])), this.state.by, (value) => cipm.view.patch({ by: value === "parameters" ? null : value }, false));
      const tools = el("div", { class: "wi-tools" }, this.undoButton, this.redoButton, this.wholeButton, this.exporting ? this.exporting.opener : null);
      return el("section", { class: "wi-model", "aria-label": "The whole model" },
        el("div", { class: "wi-head" }, el("h2", {}, "The whole model"), this.state.walks.length > 1 ? by : null, tools),
        this.slider, el("div", { class: "wi-ends" }, ...this.ends), this.buildFigures(), this.measuring.node, this.timing.node, this.status);
    }
    buildFigures() {
      const { session } = this.whatif, base = session.baseline;
      this.cells = Object.keys(COUNTS).filter((name) => this.whatif.counts[name]).map((name) => {
        const cell = { name, value: el("div", { class: "big-value" }), note: el("div", { class: "big-note" }), beside: el("div", { class: "big-note wi-other" }) };
        cell.node = el("div", { class: "big" }, el("div", { class: "big-name" }, COUNTS[name]), cell.value, cell.note, cell.beside);
        return cell;
      });
      const rows = [["loss", LOSSES[base.loss_kind] || "Loss", base.loss]];
      if (known(base.perplexity)) rows.push(["perplexity", "Perplexity", base.perplexity]);
      if (this.whatif.kinds.includes("kl")) rows.push(["kl", "KL to the original", 0]);
      if (known(base.accuracy)) rows.push(["accuracy", "Accuracy", base.accuracy]);
      if (this.whatif.kinds.includes("kl") || base.loss_kind === "kl_to_original") rows.push(["agreement", "Same answer as the original", 1]);
      const shared = { accuracy: 1, agreement: 1 };
      this.facts = rows.map(([name, words, whole]) => {
        const fact = { name, share: name in shared, cells: ["predicted", "likely", "measured", "other"].map((part) => el("td", { class: `wi-${part}` }, DASH)) };
        fact.node = el("tr", {}, el("th", { scope: "row" }, words), el("td", {}, fact.share ? cipm.percent(whole) : cipm.steady(whole)), ...fact.cells);
        return fact;
      });
      const heads = ["Whole model", "Predicted", "Likely range", "Measured"].map((text) => el("th", { scope: "col" }, text));
      heads[2].title = this.bandWords();
      heads[3].append(el("span", { class: "wi-key measured" }));
      heads[1].append(el("span", { class: "wi-key predicted" }));
      this.otherHead = el("th", { scope: "col", class: "wi-other-head" });
      return el("div", { class: "wi-figures" }, el("div", { class: "bigs" }, ...this.cells.map((cell) => cell.node)),
        el("div", { class: "wide-table" }, el("table", { class: "wi-facts" }, el("thead", {}, el("tr", {}, el("td", {}), ...heads, this.otherHead)), el("tbody", {}, ...this.facts.map((fact) => fact.node)))));
    }
    bandWords() {
      const band = (this.whatif.session.band || {})[this.whatif.kinds[0]];
      if (!band) return "Too few whole networks were measured to say how far predictions are off.";
      return `Each of ${band.points} measured networks was predicted from the others: 9 of 10 rises were within a factor of ${cipm.short(band.p90)}, half of them within ${cipm.short(band.median)}.`;
    }

    /* ---------- the groups ---------- */
    buildGroups() {
      const { whatif } = this, most = Math.max(0, ...whatif.groups.map((group) => group.rises[whatif.kinds[0]][Math.min(group.size, group.blocks || 1)]));
      this.rows = whatif.groups.map((group, at) => this.row(group, at, most));
      const filter = el("input", { type: "search", class: "wi-filter", placeholder: "Filter groups", autocomplete: "off", "aria-label": "Filter groups" });
      this.none = el("p", { class: "quiet", hidden: true }, "No group matches.");
      filter.addEventListener("input", () => {
        const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
        for (const row of this.rows) row.node.hidden = !words.every((word) => row.search.includes(word));
        this.none.hidden = this.rows.some((row) => !row.node.hidden);
      });
      const head = (text, title, sort, name) => el("th", { scope: "col", title, class: name, "data-sort": sort ? "1" : null }, text);
      this.otherColumn = head("", "Units kept there", false, "wi-other-head");
      const left = Object.entries(whatif.session.unavailable || {});
      return el("section", { class: "wi-groups", "aria-label": "Groups" },
        el("div", { class: "wi-head" }, el("h2", {}, "Groups ", el("span", { class: "quiet" }, cipm.whole(whatif.groups.filter((group) => !group.of).length))), whatif.groups.length > 6 ? filter : null,
          el("p", { class: "quiet wi-hint" }, "A locked group keeps its size while the model\u2019s slider moves.")),
        el("div", { class: "wide-table" }, el("table", { class: "wi-table" }, el("thead", {}, el("tr", {}, head("", "", false, "wi-lock-head"), head("Group", "", false, "wi-name-head"),
          head("", "", false, "wi-slide-head"), head("Kept", "Units kept of all; sorts by the share", true), head("Curve", "Predicted rise of the loss against the units kept, logarithmic, one scale for all groups", false, "wi-thumb-head"),
          head("Saves", "Parameters that this group saves, the others being as they are", true), this.otherColumn)), el("tbody", {}, ...this.rows.map((row) => row.node)))),
        this.none, left.length ? el("details", { class: "wi-left", open: left.length <= 6 }, el("summary", {}, `${left.length === 1 ? "One group" : `${left.length} groups`} cannot be made smaller`), this.reasons()) : null);
    }
    reasons() {
      return el("ul", { class: "wi-reasons" }, ...Object.entries(this.whatif.session.unavailable || {}).map(([name, why]) => el("li", {}, el("b", {}, name), ` ${why}`)));
    }
    row(group, at, most) {
      const step = this.whatif.step(at), bounds = { min: this.whatif.least(at), max: group.size, step, "aria-label": `Units kept of ${group.name}` };
      const row = { at, search: `${group.name} ${group.kind} ${group.size}`.toLowerCase(), slider: el("input", { type: "range", class: "wi-range", ...bounds }),
        number: el("input", { type: "number", class: "wi-number", inputmode: "numeric", ...bounds, "aria-label": `Number of units kept of ${group.name}` }),
        lock: el("button", { type: "button", class: "wi-lock", "aria-label": `Lock ${group.name}`, title: "Keep this size while the model\u2019s slider moves", onclick: () => this.state.toggleLock(at) }),
        thumb: new cipm.Thumbnail(this.whatif, at, this.whatif.kinds[0], most), saves: el("td", { class: "wi-saves" }), other: el("td", { class: "wi-other" }),
        link: el("a", { title: "Which units go, on the heatmap", onclick: (event) => cipm.go(event, row.link.getAttribute("href")) }, group.name) };
      row.slider.addEventListener("input", () => this.timed(() => this.state.move(at, Number(row.slider.value))));
      row.slider.addEventListener("change", () => this.state.rest());
      row.number.addEventListener("change", () => { this.state.move(at, Number(row.number.value) || group.size); this.paint(); this.state.rest(); });
      row.kept = el("td", { class: "wi-kept" }, row.number, el("span", { class: "quiet" }, `of\u00a0${cipm.whole(group.size)}`));
      if (group.of) row.link.title = `The stream ${group.of}, cut by its principal directions: moving this keeps every coordinate`;
      const notes = [group.blocks > 1 ? `${group.kind}, in ${group.blocks} blocks` : group.kind, group.level ? `inside ${group.level}` : null].filter(Boolean).join(", ");
      row.node = el("tr", { "data-group": group.name, "data-locked": "false" }, el("td", { class: "wi-lock-cell" }, row.lock),
        el("th", { scope: "row", class: group.level || group.of ? "wi-inner" : "", title: (group.notes || []).join(" ") }, row.link, el("span", { class: "wi-kind" }, notes)),
        el("td", { class: "wi-slide" }, row.slider), row.kept, el("td", { class: "wi-thumb-cell" }, row.thumb.node), row.saves, row.other);
      return row;
    }

    /* ---------- beside the groups ---------- */
    buildFigure() {
      const place = el("div", { class: "wi-figure-place" });
      this.figure = new cipm.WhatIfFigure(place, (choice) => { this.state.set(this.state.held(choice.sizes)); this.state.rest(); });
      const words = { kl: "KL", loss: "Loss" };
      const kind = this.seg("What is drawn", Object.fromEntries(this.whatif.kinds.map((name) => [name, words[name]])), this.state.kind, (value) => cipm.view.patch({ draw: value === this.whatif.kinds[0] ? null : value }, false));
      const key = (name, text) => el("li", {}, el("span", { class: `wi-key ${name}` }), text);
      return el("section", { "aria-label": "Loss against size" }, el("div", { class: "wi-head" }, el("h2", {}, "Loss against size"), this.whatif.kinds.length > 1 ? kind : null), place,
        el("ul", { class: "wi-keys" }, key("front", "best choice at each size"), (this.whatif.session.band || {})[this.whatif.kinds[0]] ? key("band", "error band: half, 9 of 10") : null, key("known", "measured networks"), key("predicted", "this, predicted"), key("measured", "this, measured")));
    }
    buildAdvice() {
      const found = (this.whatif.session.advice || []).filter((row) => row.keep);
      if (!found.length) return null;
      const accuracy = known(this.whatif.session.baseline.accuracy);
      const widths = (sizes) => {
        const shown = this.whatif.groups.flatMap((group, at) => (group.of ? [] : [`${group.name} ${sizes[at]} of ${group.size}`]));
        return shown.length <= 4 ? shown.join(", ") : `${cipm.percent(sizes.reduce((sum, units, at) => sum + units / this.whatif.whole[at], 0) / sizes.length, 0)} of the units on average`;
      };
      const rows = found.map((row) => {
        const sizes = this.whatif.sizes(row.keep), apply = button("Apply", `Set these widths`, () => this.state.take(sizes));
        apply.setAttribute("aria-label", `Apply the widths for ${cipm.percent(row.allowed)}`);
        const measured = row.measured || {};
        return [el("tr", {}, el("th", { scope: "row" }, cipm.percent(row.allowed)), el("td", {}, cipm.compact(row.parameters), " ", el("span", { class: "quiet" }, `${cipm.percent(row.parameters / this.whatif.count("parameters", this.whatif.whole), 0)}`)),
          el("td", {}, accuracy ? cipm.percent(measured.accuracy) : cipm.short(measured.loss)), el("td", { rowspan: 2 }, apply)),
          el("tr", { class: "wi-widths" }, el("td", { colspan: 3 }, widths(sizes)))];
      });
      const what = accuracy ? "Accuracy lost" : "Loss added";
      return el("section", { class: "wi-advice", "aria-label": "Widths that this data supports" }, el("div", { class: "wi-head" }, el("h2", {}, "Widths that this data supports")),
        el("table", {}, el("thead", {}, el("tr", {}, ...[what, "Parameters", accuracy ? "Accuracy" : "Loss", ""].map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...rows.flat())));
    }
    buildNotes() {
      const { session } = this.whatif;
      const notes = [`Everything is measured on ${cipm.whole(session.rows)} probe rows that no weight was fitted on. Units go in the order in which they cost least, and what reads them takes over by least squares; nothing is trained.`, this.bandWords(), ...(session.notes || [])];
      return el("details", { class: "wi-notes" }, el("summary", {}, "How the numbers come about"), ...notes.map((note) => el("p", { class: "quiet" }, note)));
    }

    /* ---------- what moves ---------- */
    changed(what) {
      if (!this.rows) return;
      if (what === "front") this.drawFigure();
      if (what === "rest") { this.say(""); this.linkRows(); this.measuring.rested(); }
      this.paint(what !== "move");
    }
    /* How long a move took, the browser's layout included: the last 500 are kept for who asks. */
    timed(action) {
      const start = performance.now();
      action();
      this.node.getBoundingClientRect();
      this.moves.push(performance.now() - start);
      this.moves.splice(0, this.moves.length - 500);
    }
    stepWalk(event) {
      const by = { ArrowLeft: 1, ArrowDown: 1, ArrowRight: -1, ArrowUp: -1 }[event.key];
      if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.timed(() => this.state.step(by));
      clearTimeout(this.stepping);
      this.stepping = setTimeout(() => this.state.rest(), 400);
    }
    key(event) {
      if (!this.rows || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
      if (event.target.closest && event.target.closest("input[type=text], input[type=search], textarea")) return;
      event.preventDefault();
      if (event.shiftKey) this.state.redo(); else this.state.undo();
    }
    addressed(values, before) {
      if (!this.rows || this.gone) return;
      this.state.addressed(values, before);
      this.saved.compare(values.compare);
    }
    paint(all = true) {
      const { whatif, state } = this, whole = whatif.whole;
      this.paintModel();
      const predicted = whatif.predicted(state.sizes), measured = this.measuring.of(state.sizes);
      for (const cell of this.cells) {
        const most = whatif.count(cell.name, whole), unit = cell.name === "bytes" ? "bytes" : "";
        const now = whatif.count(cell.name, state.sizes);
        put(cell.value, cipm.amount(now, unit));
        put(cell.note, `${cipm.percent(now / most)} of ${cipm.amount(most, unit)}`);
        const there = this.beside && whatif.count(cell.name, this.beside.sizes);
        put(cell.beside, this.beside ? `${this.beside.name}: ${cipm.amount(there, unit)}, ${cipm.percent(there / most)}` : "");
      }
      for (const fact of this.facts) this.paintFact(fact, predicted, measured);
      for (const row of all ? this.rows : this.inView) this.paintRow(row);
      this.paintFigure(predicted, measured);
      this.measuring.show(); this.timing.show();
    }
    /* While a slider moves, the rows in view alone are painted; the others when it rests, or as they come into view. */
    watchRows() {
      const of = new Map(this.rows.map((row) => [row.node, row]));
      this.inView = new Set(this.rows);
      this.watcher = new IntersectionObserver((entries) => {
        for (const { target, isIntersecting } of entries) {
          const row = of.get(target);
          if (isIntersecting && !this.inView.has(row)) this.paintRow(row);
          this.inView[isIntersecting ? "add" : "delete"](row);
        }
      }, { rootMargin: "120px" });
      for (const row of this.rows) this.watcher.observe(row.node);
    }
    paintModel() {
      const { state, whatif } = this, [low, high] = state.range, now = whatif.count(state.by, state.sizes), all = whatif.count(state.by, whatif.whole);
      const place = String(state.place), noun = COUNTS[state.by].toLowerCase().replace("flops", "FLOPs");
      if (this.slider.value !== place) this.slider.value = place;
      this.slider.disabled = state.front.length < 2;
      this.slider.style.setProperty("--at", `${state.place / 10}%`);
      this.slider.setAttribute("aria-valuetext", `${cipm.percent(now / all)} of the ${noun}`);
      put(this.ends[0], cipm.percent(low / all, 0)); put(this.ends[1], `${cipm.percent(now / all)} of the ${noun} kept`); put(this.ends[2], cipm.percent(high / all, 0));
      this.undoButton.disabled = !state.past.length; this.redoButton.disabled = !state.future.length;
      this.wholeButton.disabled = whatif.isWhole(state.sizes) && !state.locked.size;
    }
    paintFact({ name, share, cells }, predicted, measured) {
      const [guess, range, found, other] = cells, words = (value) => (share ? cipm.percent(value) : cipm.steady(value));
      const of = (source, pick) => {
        if (name !== "perplexity") return source[name] && pick(source[name]);
        const value = source.loss && pick(source.loss);
        return Array.isArray(value) ? value.map(Math.exp) : known(value) ? Math.exp(value) : value;
      };
      fill(guess, words(of(predicted, (entry) => entry.value)));
      const band = of(predicted, (entry) => entry.range);
      fill(range, band ? `${words(band[0])} \u2013 ${words(band[1])}` : DASH);
      fill(found, measured ? words(this.measuredValue(measured, name)) : DASH);
      if (!this.beside) { put(other, ""); return; }
      const there = this.measuring.of(this.beside.sizes), guessed = of(this.whatif.predicted(this.beside.sizes), (entry) => entry.value);
      put(other, there ? words(this.measuredValue(there, name)) : known(guessed) ? `${words(guessed)} predicted` : DASH);
    }
    measuredValue(measured, name) { return name === "perplexity" && !known(measured.perplexity) ? Math.exp(measured.loss) : measured[name]; }
    paintRow(row) {
      const { state, whatif } = this, units = state.sizes[row.at], locked = state.locked.has(row.at);
      if (row.units !== units || document.activeElement !== row.number) {
        if (row.slider.value !== String(units)) row.slider.value = String(units);
        if (row.number.value !== String(units)) row.number.value = String(units);
      }
      if (row.units !== units) {
        row.units = units;
        row.slider.style.setProperty("--at", `${(100 * (units - whatif.least(row.at))) / (whatif.whole[row.at] - whatif.least(row.at) || 1)}%`);
        row.thumb.show(units);
        row.kept.dataset.value = units / whatif.whole[row.at];
        row.node.classList.toggle("wi-smaller", units < whatif.whole[row.at]);
        row.slider.setAttribute("aria-valuetext", `${units} of ${whatif.whole[row.at]} units`);
      }
      if (row.node.dataset.locked !== String(locked)) {
        row.node.dataset.locked = String(locked);
        row.slider.disabled = row.number.disabled = locked;
        row.lock.setAttribute("aria-pressed", String(locked));
      }
      const saved = whatif.saved("parameters", state.sizes, row.at);
      put(row.saves, saved > 0.5 ? cipm.compact(saved) : DASH);
      row.saves.dataset.value = saved;
      const there = this.beside && this.beside.sizes[row.at];
      put(row.other, this.beside ? cipm.whole(there) : "");
      row.node.classList.toggle("wi-differs", Boolean(this.beside) && there !== units);
    }
    /* A group leads to its heatmap, where what goes is marked. */
    linkRows() {
      const { sizes } = this.state.encoded, { groups } = this.whatif;
      for (const row of this.rows) row.link.setAttribute("href", `${this.props.page}?${new URLSearchParams({ group: groups[row.at].of || groups[row.at].name, ...(sizes ? { sizes } : {}) })}`);
    }

    /* ---------- the figure ---------- */
    drawFigure() {
      const { whatif, state } = this, { by, kind } = state, base = kind === "loss" ? whatif.session.baseline.loss : 0;
      const tell = ({ choice, rise }) => `${cipm.compact(choice.count)} (${cipm.percent(choice.count / whatif.count(by, whatif.whole))}): ${kind === "kl" ? "KL" : "loss"} ${cipm.short(base + rise)} predicted. Click to go there.`;
      this.figure.draw({ whatif, kind, by: COUNTS[by].split(" ")[0], front: state.front, free: state.free, words: kind === "kl" ? "KL to the original" : "the loss", tell,
        points: this.measuring.known().map((sizes) => this.point("wi-known", sizes, this.measuring.of(sizes)[kind] - base, "measured")) });
    }
    point(name, sizes, rise, words) {
      const { whatif, state } = this, count = whatif.count(state.by, sizes);
      return { class: name, count, rise, words: `${words}: ${cipm.short(rise)} at ${cipm.percent(count / whatif.count(state.by, whatif.whole))}` };
    }
    paintFigure(predicted, measured) {
      const { state } = this, { kind } = state, base = kind === "loss" ? this.whatif.session.baseline.loss : 0, marks = [];
      if (this.beside) {
        const there = this.measuring.of(this.beside.sizes);
        marks.push(this.point("wi-beside", this.beside.sizes, there ? there[kind] - base : this.whatif.rise(kind, this.beside.sizes), this.beside.name));
      }
      marks.push(this.point("wi-predicted", state.sizes, predicted[kind].rise, "this what-if, predicted"));
      if (measured && known(measured[kind])) marks.push(this.point("wi-measured", state.sizes, measured[kind] - base, "this what-if, measured"));
      this.figure.show(marks);
    }

    /* ---------- beside another what-if ---------- */
    compareWith(other) {
      this.beside = other;
      this.node.classList.toggle("wi-comparing", Boolean(other));
      put(this.otherHead, other ? other.name : ""); put(this.otherColumn, other ? other.name : "");
      if (this.rows) this.paint();
    }
    reveal(name) {
      const row = this.rows.find((other) => this.whatif.groups[other.at].name === name);
      if (!row) return;
      row.node.classList.add("wi-asked");
      row.node.scrollIntoView({ block: "center" });
    }
  }
  cipm.component("WhatIfSession", WhatIfSession);
})();
