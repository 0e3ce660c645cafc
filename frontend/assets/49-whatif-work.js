/* What a what-if session asks the server for: measurements on a worker, saved what-ifs, smaller checkpoints. */
(function () {
  "use strict";
  const cipm = window.cipm, { el } = cipm, ACTIVE = ["queued", "running"], REST = 500;
  const AUTO = "cipm-measure-when-still";
  const button = (text, action, more = {}) => el("button", { type: "button", class: "cipm-button", onclick: action, ...more }, text);
  const link = (text, action, more = {}) => el("button", { type: "button", class: "cipm-link", onclick: action, ...more }, text);
  const stored = (name) => { try { return localStorage.getItem(name); } catch (error) { return null; } };
  const store = (name, value) => { try { localStorage.setItem(name, value); } catch (error) { /* blocked: it holds until the page is left */ } };

  /* ---------- measuring ---------- */
  class Measuring {
    constructor(page) {
      this.page = page; this.found = new Map(); this.auto = stored(AUTO) !== "off";
      const { session, whole } = page.whatif, { baseline } = session;
      this.put(whole, { ...baseline, kl: 0, agreement: 1 });
      for (const point of session.points || []) this.put(page.whatif.sizes(point.keep), point.measured);
      this.text = el("span", { class: "wi-state", role: "status" });
      this.bar = el("i", {}); this.meter = el("span", { class: "meter", "aria-hidden": "true" }, this.bar);
      this.now = button("Measure", () => this.run(), { title: "Prune and refit all of it, and run it on the held-out rows" });
      this.stop = button("Cancel", () => this.cancel(), { title: "Stop this measurement" });
      const check = el("input", { type: "checkbox", checked: this.auto });
      check.addEventListener("change", () => { this.auto = check.checked; store(AUTO, this.auto ? "on" : "off"); this.rested(); });
      const owner = page.props.readOnly ? [] : [this.now, this.stop, el("label", { class: "wi-auto" }, check, "Measure when I stop")];
      this.node = el("div", { class: "wi-measure" }, ...owner, this.text, this.meter);
      this.show();
    }
    destroy() { clearTimeout(this.timer); if (this.unfollow) this.unfollow(); }
    key(sizes) { return this.page.whatif.encode(sizes); }
    put(sizes, measured) { this.found.set(this.key(sizes), { sizes, measured }); }
    /* What was measured at these sizes, or undefined. */
    of(sizes) { const entry = this.found.get(this.key(sizes)); return entry && entry.measured; }
    known() { return [...this.found.values()].filter(({ sizes }) => !this.page.whatif.isWhole(sizes)).map(({ sizes }) => sizes); }

    async load() {
      const list = await this.page.ask("GET", "/measurements");
      for (const one of list || []) this.take(one);
      this.page.node.dataset.measured = "1";
      this.page.drawFigure(); this.page.paint();
    }
    take({ keep, result }) {
      if (keep && typeof keep === "object" && result) this.put(this.page.whatif.sizes(keep), result.measured || result);
    }
    /* The sliders have stopped: measure in half a second, where that is wanted and not known. */
    rested() {
      clearTimeout(this.timer);
      this.problem = null;
      if (this.auto && !this.page.props.readOnly && !this.of(this.page.state.sizes)) this.timer = setTimeout(() => this.run(), REST);
      this.show();
    }
    async run() {
      const { sizes } = this.page.state;
      clearTimeout(this.timer);
      if (this.of(sizes) || (this.job && this.asked === this.key(sizes))) return;
      if (this.job) await this.cancel();
      this.asked = this.key(sizes);
      const job = await this.page.ask("POST", "/measurements", { keep: this.page.whatif.keep(sizes) });
      if (job) this.follow(job);
    }
    follow(job) {
      this.job = job; this.show();
      if (!ACTIVE.includes(job.status)) { this.ended(job); return; }
      this.unfollow = cipm.follow(this.page.address("/events", { job: job.id }), null, (news) => {
        this.job = news; this.show();
        if (!ACTIVE.includes(news.status)) this.ended(news);
      });
    }
    async ended(job) {
      this.job = this.asked = null;
      if (job.status === "done") await this.load();
      else if (job.status === "failed") this.problem = job.error;
      this.show();
    }
    async cancel() {
      const { job } = this;
      if (!job) return;
      if (this.unfollow) this.unfollow();
      this.job = this.asked = null;
      this.show();
      await this.page.ask("POST", "/cancel", null, { job: job.id });
    }
    show() {
      const { page, job } = this, state = page.state, done = this.of(state.sizes);
      const running = job && ACTIVE.includes(job.status), rows = page.whatif.session.rows;
      this.now.hidden = Boolean(running); this.stop.hidden = !running; this.now.disabled = Boolean(done);
      this.meter.classList.toggle("wi-idle", !running);
      this.bar.style.transform = `scaleX(${running ? Math.max(0.03, job.progress) : 0})`;
      const words = this.problem ? `${this.problem.message} ${this.problem.fix || ""}`
        : running ? (job.status === "queued" ? "Waiting for a worker\u2026" : `Measuring\u2026 ${cipm.percent(job.progress, 0)}`)
          : done ? `Measured on ${cipm.whole(done.rows || rows)} held-out rows.` : "Not measured.";
      if (this.text.textContent !== words) this.text.textContent = words;
      this.text.title = ((done && done.notes) || []).join(" ");
      this.text.classList.toggle("bad", Boolean(this.problem));
    }
  }

  /* ---------- a budget of run time ---------- */
  class Timing {
    constructor(page) {
      this.page = page; this.found = new Map(); this.problem = null;
      this.share = el("input", { type: "number", class: "wi-percent", min: 1, max: 99, step: 1, value: 50, inputmode: "numeric", "aria-label": "Run time at most, per cent of the whole model\u2019s" });
      this.find = el("button", { type: "submit", class: "cipm-button", title: "Make a few sizes along the FLOPs, with your locks, and time them beside the whole model on the server" }, "Find sizes");
      this.text = el("span", { class: "wi-time", role: "status" });
      const form = el("form", { class: "wi-latency" }, "Run time at most ", this.share, "\u202f% of the whole model\u2019s", this.find);
      form.addEventListener("submit", (event) => { event.preventDefault(); this.run(); });
      this.node = el("div", { class: "wi-measure" }, ...(page.props.readOnly ? [] : [form]), this.text);
    }
    destroy() { if (this.unfollow) this.unfollow(); }
    async load() {
      for (const { result } of (await this.page.ask("GET", "/latencies")) || []) if (result) this.found.set(this.page.whatif.encode(this.page.whatif.sizes(result.keep)), result);
      this.show();
    }
    async run() {
      if (this.job) return;
      this.problem = null;
      const { state } = this.page, share = Number(this.share.value) / 100, job = await this.page.ask("POST", "/latencies", { share, ...state.asked });
      if (!job) return;
      this.locked = state.locked;
      if (!ACTIVE.includes(job.status)) { this.ended(job); return; }
      this.job = job; this.show();
      this.unfollow = cipm.follow(this.page.address("/events", { job: job.id }), null, (news) => { if (!ACTIVE.includes(news.status)) this.ended(news); });
    }
    async ended(job) {
      this.job = null;
      if (job.status !== "done") this.problem = job.error;
      const one = job.status === "done" && ((await this.page.ask("GET", "/latencies")) || []).find((made) => made.job.id === job.id);
      if (one) {
        const sizes = this.page.whatif.sizes(one.result.keep);
        this.found.set(this.page.whatif.encode(sizes), one.result);
        this.page.state.take(sizes, this.locked);
      }
      this.show();
    }
    show() {
      const done = this.found.get(this.page.whatif.encode(this.page.state.sizes)), { latency } = done || {};
      const words = this.problem ? `${this.problem.message} ${this.problem.fix || ""}`
        : this.job ? "Timing smaller models on the server\u2026"
          : done ? `${cipm.percent(done.share, 0)} of the whole model\u2019s run time, measured on the server\u2019s machine: ${latency.rows} rows in ${latency.runtime}, ${latency.threads} threads, the fastest of ${latency.runs} runs.` : "";
      if (this.text.textContent !== words) this.text.textContent = words;
      this.text.title = (done && done.words) || "";
      this.find.disabled = Boolean(this.job);
      this.text.classList.toggle("bad", Boolean(this.problem));
    }
  }

  /* ---------- saved what-ifs ---------- */
  class Saved {
    constructor(page) {
      this.page = page; this.items = [];
      this.name = el("input", { type: "text", class: "wi-filter", maxlength: "200", placeholder: "Name of this what-if", "aria-label": "Name of this what-if", required: true });
      const form = el("form", { class: "wi-save" }, this.name, el("button", { type: "submit", class: "cipm-button" }, "Save"));
      form.addEventListener("submit", (event) => { event.preventDefault(); this.save(); });
      this.list = el("ul", { class: "rows wi-saved" });
      this.back = el("p", { class: "wi-back", role: "status" });
      this.node = el("section", { "aria-label": "Saved what-ifs" }, el("div", { class: "wi-head" }, el("h2", {}, "Saved what-ifs")), page.props.readOnly ? null : form, this.list, this.back);
    }
    async load() {
      this.items = (await this.page.ask("GET", "/whatifs")) || [];
      this.page.node.dataset.saved = "1";
      this.show(); this.open(cipm.view.values.whatif); this.compare(cipm.view.values.compare);
    }
    /* The address may name a saved what-if instead of sizes. */
    open(id) {
      const item = this.items.find((other) => other.id === id);
      if (item && !cipm.view.values.sizes) this.use(item);
    }
    use(item) {
      const { whatif, state } = this.page, locked = (item.locked || []).filter((name) => whatif.at.has(name)).map((name) => whatif.at.get(name));
      state.take(whatif.sizes(item.keep), new Set(locked));
    }
    async save() {
      const { whatif, state } = this.page, name = this.name.value.trim();
      if (!name) return;
      const locked = [...state.locked].map((at) => whatif.groups[at].name);
      const made = await this.page.ask("POST", "/whatifs", { name, keep: whatif.keep(state.sizes), locked });
      if (!made) return;
      this.name.value = "";
      this.items = [made, ...this.items];
      this.show();
    }
    async rename(item, name) {
      const changed = name && name !== item.name && (await this.page.ask("PATCH", `/whatifs/${encodeURIComponent(item.id)}`, { name }));
      if (changed) this.items = this.items.map((other) => (other.id === item.id ? changed : other));
      this.show();
    }
    /* Delete at once; for a while it can be had back. */
    async remove(item) {
      if ((await this.page.ask("DELETE", `/whatifs/${encodeURIComponent(item.id)}`)) === undefined) return;
      this.items = this.items.filter((other) => other.id !== item.id);
      if (cipm.view.values.compare === item.id) cipm.view.patch({ compare: null }, false);
      this.show();
      const again = async () => {
        const made = await this.page.ask("POST", "/whatifs", { name: item.name, keep: item.keep, locked: item.locked || [] });
        if (made) { this.items = [made, ...this.items]; this.back.replaceChildren(); this.show(); }
      };
      this.back.replaceChildren(`\u201c${item.name}\u201d is deleted. `, link("Undo", again));
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.back.replaceChildren(), 15000);
    }
    compare(id) {
      const item = this.items.find((other) => other.id === id);
      if ((item || null) === this.comparing) return;
      this.comparing = item || null;
      this.page.compareWith(item ? { name: item.name, sizes: this.page.whatif.sizes(item.keep) } : null);
      this.show();
    }
    show() {
      const { whatif } = this.page;
      this.list.replaceChildren(...this.items.map((item) => this.row(item)));
      if (!this.items.length) this.list.append(el("li", { class: "quiet" }, this.page.props.readOnly ? "None was saved." : `Save one to come back to it, and to compare: it goes along with the analysis\u2019s shared links.`));
    }
    row(item) {
      const { whatif } = this.page, sizes = whatif.sizes(item.keep), on = this.comparing && this.comparing.id === item.id;
      const all = whatif.count("parameters", whatif.whole), note = `${cipm.percent(whatif.count("parameters", sizes) / all, 0)} of the parameters`;
      const title = el("div", {}, link(item.name, () => this.use(item), { title: "Open this what-if" }), el("span", { class: "quiet wi-note" }, note));
      const compare = link(on ? "Stop comparing" : "Compare", () => cipm.view.patch({ compare: on ? null : item.id }, false), { "aria-pressed": String(Boolean(on)), "aria-label": `Compare with ${item.name}` });
      const owner = this.page.props.readOnly ? [] : [link("Rename", () => this.edit(item, title), { "aria-label": `Rename ${item.name}` }), link("Delete", () => this.remove(item), { "aria-label": `Delete ${item.name}` })];
      return el("li", {}, title, el("span", { class: "wi-acts" }, compare, ...owner));
    }
    edit(item, place) {
      const field = el("input", { type: "text", class: "wi-filter", value: item.name, maxlength: "200", "aria-label": `New name of ${item.name}` });
      let over = false;
      const end = (keep) => { if (over) return; over = true; this.rename(item, keep ? field.value.trim() : ""); };
      field.addEventListener("keydown", (event) => { if (event.key === "Enter") end(true); else if (event.key === "Escape") end(false); });
      field.addEventListener("blur", () => end(true));
      place.replaceChildren(field);
      field.focus(); field.select();
    }
  }

  /* ---------- smaller checkpoints ---------- */
  const FORMS = { pt2: "PyTorch .pt2", onnx: "ONNX", huggingface: "Hugging Face folder", state_dict: "weights alone (state dict)" };
  class Export {
    constructor(page) {
      this.page = page; this.following = new Map();
      this.opener = button("Export smaller\u2026", () => this.open(), { class: "cipm-button filled" });
      this.form = el("select", { class: "wi-select", "aria-label": "Format of the file" },
        ...(page.whatif.session.forms || []).map((form, at) => el("option", { value: form }, `${FORMS[form] || form}${at ? "" : ", as uploaded"}`)));
      this.what = el("p", {}); this.list = el("ul", { class: "rows exports" }); this.problem = el("p", { class: "bad", role: "alert" });
      this.start = button("Write it", () => this.make(), { class: "cipm-button filled" });
      this.dialog = el("dialog", { class: "wi-dialog", "aria-label": "Export a smaller checkpoint" },
        el("div", { class: "wi-head" }, el("h2", {}, "Export a smaller checkpoint"), button("Close", () => this.dialog.close(), { class: "cipm-button subtle" })),
        this.what, el("div", { class: "wi-save" }, el("label", {}, "Format ", this.form), this.start), this.problem, el("h3", {}, "Files"), this.list);
      this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
    }
    destroy() { for (const stop of this.following.values()) stop(); this.dialog.remove(); }
    async open() {
      const { whatif, state } = this.page, whole = whatif.isWhole(state.sizes);
      const words = ["parameters", "bytes"].map((name) => { const all = whatif.count(name, whatif.whole), now = whatif.count(name, state.sizes); return name === "bytes" ? `${cipm.bytes(now)} instead of ${cipm.bytes(all)}` : `${cipm.compact(now)} parameters instead of ${cipm.compact(all)}`; });
      this.what.textContent = whole ? "Every group is whole: make one smaller first." : `The model of this what-if, refitted: ${words.join(", ")}. It is checked against the what-if\u2019s own answers, and loads with the format\u2019s own tools alone.`;
      this.start.disabled = whole;
      this.problem.textContent = "";
      document.body.append(this.dialog);
      this.dialog.showModal();
      await this.refresh();
    }
    async make() {
      this.start.disabled = true;
      this.problem.textContent = "";
      try {
        const made = await cipm.ask("POST", this.page.address("/exports"), { keep: this.page.whatif.keep(this.page.state.sizes), form: this.form.value || null });
        this.follow(made);
      } catch (problem) {
        if (!problem.message || problem instanceof Error) throw problem;
        this.problem.textContent = `${problem.message} ${problem.fix || ""}`;
      }
      this.start.disabled = false;
      await this.refresh();
    }
    async refresh() {
      const all = (await this.page.ask("GET", "/exports")) || [], mine = all.filter((one) => one.keep);
      for (const one of mine) if (ACTIVE.includes(one.job.status)) this.follow(one);
      this.list.replaceChildren(...mine.map((one) => el("li", {}, ...this.row(one))));
      if (!mine.length) this.list.append(el("li", { class: "quiet" }, "Nothing smaller was written yet."));
    }
    follow({ job }) {
      if (this.following.has(job.id) || !ACTIVE.includes(job.status)) return;
      this.following.set(job.id, cipm.follow(this.page.address("/events", { job: job.id }), null, () => this.refresh()));
    }
    row(one) {
      const { job } = one, { whatif } = this.page, sizes = whatif.sizes(one.keep);
      const share = cipm.percent(whatif.count("parameters", sizes) / whatif.count("parameters", whatif.whole), 0);
      const name = `${share} of the parameters, ${FORMS[one.form] || one.form || "as uploaded"}`;
      if (ACTIVE.includes(job.status)) return [el("div", {}, `${name}: writing\u2026`), el("span", { class: "badge" }, cipm.percent(job.progress, 0))];
      if (job.status !== "done") return [el("div", {}, name, el("p", { class: "bad" }, job.error ? `${job.error.message} ${job.error.fix || ""}` : job.status))];
      const proof = (one.certificate || {}).masked;
      return [el("div", {}, `${one.filename} `, el("span", { class: "quiet" }, `${cipm.bytes(one.size)}; ${name}`), ...this.report(one.facts || {}, (one.certificate || {}).runtime)),
        proof ? el("span", { class: `badge ${proof.passed ? "good" : "bad"}`, title: `The file\u2019s model and the what-if\u2019s own differ by at most ${cipm.short(proof.max_rel)}, relative to the largest output (tolerance ${cipm.short(proof.tolerance)}).` }, proof.passed ? "equals the what-if" : "differs from the what-if") : null,
        el("a", { class: "cipm-button", href: `/api/exports/${encodeURIComponent(one.id)}/file`, download: "" }, "Download")].filter(Boolean);
    }
    /* What the file's own report says: sizes, what it measured, what ran it, how long it takes. */
    report({ parameters, baseline, measured, latency, notes, rows }, ran) {
      const lines = [], given = (value) => value !== null && value !== undefined;
      if (parameters) lines.push(`${cipm.whole(parameters.after)} parameters instead of ${cipm.whole(parameters.before)}`);
      if (measured) {
        const loss = `measured loss ${cipm.short(measured.loss)} instead of ${cipm.short(baseline.loss)}`;
        lines.push(`${loss}${given(measured.accuracy) ? `, accuracy ${cipm.percent(measured.accuracy)} instead of ${cipm.percent(baseline.accuracy)}` : ""}, on ${cipm.whole(rows)} rows`);
      }
      if (ran) lines.push(`Run by ${ran.runtime} on ${cipm.whole(ran.rows)} ${ran.rows === 1 ? "row" : "rows"}: ${ran.max_abs === 0 ? "outputs equal those of the network that was measured" : `outputs differ from those of the network that was measured by at most ${cipm.short(ran.max_abs)}, ${cipm.short(ran.max_rel)} of the largest (rounding may explain ${cipm.short(ran.tolerance)})`}`);
      else if (latency) lines.push("Not run by its own runtime, which is not installed on the server");
      if (latency) lines.push(`${cipm.short(latency.after_ms)} ms instead of ${cipm.short(latency.before_ms)} ms for ${latency.rows} rows on the server: ${cipm.short(latency.times)} \u00d7 as fast (${latency.runtime}, median of ${latency.runs} runs)`);
      return [...lines.map((line) => el("p", { class: "wi-line-of" }, line)), notes && notes.length ? el("details", {}, el("summary", {}, "Notes"), ...notes.map((note) => el("p", { class: "quiet" }, note))) : ""].filter(Boolean);
    }
  }

  Object.assign(cipm, { WhatIfMeasuring: Measuring, WhatIfTiming: Timing, WhatIfSaved: Saved, WhatIfExport: Export });
})();
