/* The uploader: two slots (model, probe data), folders packed as a stored zip without copying, 8 MB chunks by offset,
   resumed after a failure and after a reload. The browser talks to /api/uploads directly. */
(function () {
  "use strict";
  const cipm = window.cipm, el = cipm.el;
  const CHUNK = 8 * 1024 * 1024, TRIES = 6;
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));

  /* ---------- what is it? ---------- */
  const ENDINGS = {
    model: /\.(pt2|safetensors|onnx|pt|pth|th|bin|ckpt|h5|keras|gguf|pb|tflite|msgpack)$|(^|\/)(architecture|config|generation_config|tokenizer|tokenizer_config|vocab|special_tokens_map|model\.safetensors\.index)\.json$/i,
    probe: /\.(npz|npy|csv|tsv|parquet|jsonl|png|jpe?g|bmp|webp|gif|tiff?)$/i,
  };
  async function guess(files) {
    if (files.some(({ path }) => ENDINGS.model.test(path))) return "model";
    if (files.some(({ path }) => ENDINGS.probe.test(path))) return "probe";
    if (files.length === 1 && /\.zip$/i.test(files[0].path)) {
      const tail = await files[0].file.slice(-65536).text();
      return /config\.json|architecture\.json|\.safetensors/.test(tail) ? "model" : "probe";
    }
    return null;
  }

  /* ---------- several files as one stored zip, made of views on the files ---------- */
  const CRC = new Uint32Array(256).map((_, n) => { for (let k = 0; k < 8; k += 1) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1; return n >>> 0; });
  async function crc32(file) {
    let crc = 0xffffffff;
    for (let at = 0; at < file.size; at += CHUNK) {
      for (const byte of new Uint8Array(await file.slice(at, at + CHUNK).arrayBuffer())) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
    }
    return (crc ^ 0xffffffff) >>> 0;
  }
  function record(signature, fields) {
    const size = 4 + fields.reduce((sum, [width]) => sum + width, 0), view = new DataView(new ArrayBuffer(size));
    view.setUint32(0, signature, true);
    let at = 4;
    for (const [width, value] of fields) { if (width === 2) view.setUint16(at, value, true); else view.setUint32(at, value, true); at += width; }
    return view.buffer;
  }
  async function pack(files) {
    const parts = [], central = [];
    let offset = 0;
    for (const { path, file } of files) {
      const name = new TextEncoder().encode(path), crc = await crc32(file);
      const common = [[2, 0x800], [2, 0], [2, 0], [2, 33], [4, crc], [4, file.size], [4, file.size], [2, name.length], [2, 0]];
      const local = record(0x04034b50, [[2, 20], ...common]);
      parts.push(local, name, file);
      central.push(record(0x02014b50, [[2, 20], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), name);
      offset += local.byteLength + name.length + file.size;
    }
    const directory = new Blob(central);
    if (offset + directory.size > 0xfffffffe || files.length > 65534) {
      throw { message: "A folder above 4 GB cannot be packed in the browser.", fix: "Zip it first (without compression is fine) and drop the zip." };
    }
    const end = record(0x06054b50, [[2, 0], [2, 0], [2, files.length], [2, files.length], [4, directory.size], [4, offset], [2, 0]]);
    return new Blob([...parts, directory, end]);
  }
  function withoutTop(files) {
    const tops = new Set(files.map(({ path }) => path.split("/")[0]));
    const nested = files.every(({ path }) => path.includes("/"));
    return tops.size === 1 && nested ? { top: [...tops][0], files: files.map(({ path, file }) => ({ path: path.slice(path.indexOf("/") + 1), file })) } : { top: null, files };
  }
  async function bundle(files, kind) {
    const clean = files.filter(({ path }) => !/(^|\/)(\.|__MACOSX|Thumbs\.db)/.test(path));
    if (clean.length === 1) return { name: clean[0].path.split("/").pop(), blob: clean[0].file, key: `${clean[0].file.name}|${clean[0].file.size}|${clean[0].file.lastModified}|${kind}` };
    const { top, files: inner } = withoutTop(clean);
    return { name: `${top || (kind === "model" ? "model" : "probe")}.zip`, blob: await pack(inner), key: null };
  }

  /* ---------- files of a drop, folders walked ---------- */
  const entryFile = (entry) => new Promise((done, fail) => entry.file(done, fail));
  const entryList = (reader) => new Promise((done, fail) => reader.readEntries(done, fail));
  async function walk(entry, into) {
    if (entry.isFile) { into.push({ path: entry.fullPath.replace(/^\//, ""), file: await entryFile(entry) }); return; }
    const reader = entry.createReader();
    for (let some = await entryList(reader); some.length; some = await entryList(reader)) for (const child of some) await walk(child, into);
  }
  /* Each folder is one thing; loose files are sorted by what they look like. */
  async function sortDropped(entries, fallback) {
    const things = [], loose = { model: [], probe: [], unknown: [] };
    for (const entry of entries) {
      const files = [];
      await walk(entry, files);
      const kind = await guess(files);
      if (entry.isDirectory) things.push({ kind: kind || fallback || "model", files });
      else loose[kind || "unknown"].push(...files);
    }
    for (const kind of ["model", "probe"]) if (loose[kind].length) things.push({ kind, files: loose[kind] });
    if (loose.unknown.length) things.push({ kind: fallback || "model", files: loose.unknown });
    return things;
  }

  /* ---------- one transfer ---------- */
  class Transfer {
    constructor(thing, kind, changed) {
      Object.assign(this, { ...thing, kind, changed, sent: 0, speed: 0, state: "starting", problem: null, upload: null });
      this.remember = this.key ? `cipm-upload-${this.key}` : null;
    }
    async run() {
      this.stopped = false; this.problem = null; this.set("uploading");
      try {
        await this.reserve();
        await this.send();
        if (this.stopped) return;
        this.upload = await this.json(`/api/uploads/${this.upload.id}`);
        if (this.remember) localStorage.removeItem(this.remember);
        this.set("done");
      } catch (problem) {
        if (this.stopped) return;
        if (!problem.message) throw problem;
        this.problem = problem; this.set("failed");
      }
    }
    set(state) { this.state = state; this.changed(); }
    async json(address, options) {
      const response = await fetch(address, options).catch(() => null);
      if (!response || !response.ok) throw await cipm.problem(response);
      return response.json();
    }
    async reserve() {
      if (this.upload) return;
      const known = this.remember && localStorage.getItem(this.remember);
      if (known) {
        const response = await fetch(`/api/uploads/${known}`).catch(() => null);
        if (response && response.ok) { this.upload = await response.json(); this.sent = this.upload.offset; return; }
      }
      this.upload = await this.json("/api/uploads", { method: "POST", headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ name: this.name, size: this.blob.size, kind: this.kind }) });
      if (this.remember) localStorage.setItem(this.remember, this.upload.id);
    }
    async offset() {
      const response = await fetch(`/api/uploads/${this.upload.id}`, { method: "HEAD" }).catch(() => null);
      if (!response) return null;
      if (!response.ok) throw { message: "This upload has expired or was removed.", fix: "Drop the file again.", gone: (this.forget(), true) };
      return Number(response.headers.get("Upload-Offset"));
    }
    forget() { if (this.remember) localStorage.removeItem(this.remember); this.upload = null; this.sent = 0; }
    async send() {
      let failures = 0;
      this.sent = (await this.offset()) ?? this.sent;
      while (this.sent < this.blob.size && !this.stopped) {
        const status = await this.put(this.blob.slice(this.sent, this.sent + CHUNK));
        if (this.stopped) return;
        if (status.ok) { failures = 0; continue; }
        if (status.code && ![409, 423, 429, 500, 502, 503, 504].includes(status.code)) throw status.problem;
        failures += 1;
        if (failures > TRIES) throw status.problem;
        this.note = "Connection lost; trying again\u2026"; this.changed();
        await wait(Math.min(16000, 500 * 2 ** failures));
        const at = await this.offset();
        if (at !== null) { this.sent = at; this.note = null; }
      }
    }
    /* XMLHttpRequest, because fetch does not report the progress of a request's body. */
    put(chunk) {
      const from = this.sent;
      return new Promise((done) => {
        const request = (this.request = new XMLHttpRequest());
        request.open("PUT", `/api/uploads/${this.upload.id}?offset=${from}`);
        request.setRequestHeader("Content-Type", "application/octet-stream");
        request.upload.onprogress = (event) => { this.progress(from + event.loaded); };
        request.onload = () => {
          if (request.status < 300) { this.sent = from + chunk.size; this.progress(this.sent); done({ ok: true }); return; }
          cipm.problem(new Response(request.responseText || "{}", { status: Math.max(200, request.status) })).then((problem) => done({ code: request.status, problem }));
        };
        request.onerror = request.onabort = () => cipm.problem(null).then((problem) => done({ code: 0, problem }));
        request.send(chunk);
      });
    }
    progress(bytes) {
      const now = performance.now();
      this.marks = [...(this.marks || []).filter(([at]) => now - at < 5000), [now, bytes]];
      const [[t0, b0]] = this.marks;
      this.speed = now - t0 > 250 ? Math.max(0, (bytes - b0) / ((now - t0) / 1000)) : this.speed;
      this.seen = bytes;
      this.changed();
    }
    async stop(remove) {
      this.stopped = true;
      if (this.request) this.request.abort();
      if (remove && this.upload) {
        const { id } = this.upload;
        this.forget();
        await fetch(`/api/uploads/${id}`, { method: "DELETE" }).catch(() => null);
      }
    }
  }

  /* ---------- the component ---------- */
  const SLOTS = {
    model: { title: "Model", text: "Drop a model here", formats: ".pt2, .onnx, a Hugging Face folder (config.json + safetensors), or weights (.safetensors, .pt) with an architecture.json; folders also zipped" },
    probe: { title: "Probe data", text: "Drop probe data here", formats: ".npz, .npy, .csv, or a zip or folder of images; labels optional" },
  };
  class Uploader {
    constructor(node, props) {
      this.node = node; this.props = props; this.slots = { model: null, probe: null }; this.cards = {};
      node.classList.add("uploader");
      for (const kind of ["model", "probe"]) { this.cards[kind] = el("section", { class: "upload-card", "data-kind": kind, "aria-label": SLOTS[kind].title }); node.append(this.cards[kind]); this.paint(kind); }
      this.handlers = { dragover: (event) => this.over(event), dragleave: (event) => this.leave(event), drop: (event) => this.drop(event) };
      for (const [name, action] of Object.entries(this.handlers)) window.addEventListener(name, action);
      cipm.uploader = this;
    }
    update(props) { this.props = props; }
    destroy() {
      for (const [name, action] of Object.entries(this.handlers)) window.removeEventListener(name, action);
      for (const transfer of Object.values(this.slots)) if (transfer && transfer.state !== "done") transfer.stop(false);
      if (cipm.uploader === this) cipm.uploader = null;
    }
    over(event) {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      const card = event.target.closest && event.target.closest(".upload-card");
      for (const [kind, node] of Object.entries(this.cards)) node.classList.toggle("over", !card || card === this.cards[kind]);
    }
    leave(event) { if (!event.relatedTarget) this.calm(); }
    calm() { for (const node of Object.values(this.cards)) node.classList.remove("over"); }
    async drop(event) {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault(); this.calm();
      const card = event.target.closest && event.target.closest(".upload-card");
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
      for (const thing of await sortDropped(entries, card ? card.dataset.kind : null)) await this.take(thing.files, thing.kind);
    }
    /* What was chosen inside a card belongs there unless its name clearly says otherwise. */
    async choose(list, kind) {
      const files = [...list].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
      if (!files.length) return;
      const split = { model: [], probe: [] };
      for (const file of files) split[(files[0].path.includes("/") ? null : await guess([file])) || kind].push(file);
      for (const side of ["model", "probe"]) if (split[side].length) await this.take(split[side], side);
    }
    async take(files, kind) {
      const before = this.slots[kind];
      if (before) before.stop(true);
      this.slots[kind] = { state: "packing", name: files.length > 1 ? "Reading the folder\u2026" : files[0].path, blob: { size: 0 }, stop() {} };
      this.paint(kind);
      try { this.begin(await bundle(files, kind), kind); }
      catch (problem) {
        if (!problem.message) throw problem;
        this.slots[kind] = { state: "failed", name: files[0].path, blob: { size: 0 }, problem, stop() {} };
        this.paint(kind);
      }
    }
    begin(thing, kind) {
      const transfer = new Transfer(thing, kind, () => { if (this.slots[kind] === transfer) { this.paint(kind); this.emit(); } });
      this.slots[kind] = transfer;
      transfer.run();
    }
    emit() {
      const value = (kind) => (this.slots[kind] && this.slots[kind].state === "done" ? this.slots[kind].upload : null);
      const next = { model: value("model"), probe: value("probe") };
      const same = ["model", "probe"].every((kind) => (next[kind] && next[kind].id) === (this.props[kind] && this.props[kind].id));
      if (!same) { this.props = { ...this.props, ...next }; this.props.setProps(next); }
    }
    async remove(kind) { const transfer = this.slots[kind]; this.slots[kind] = null; this.paint(kind); this.emit(); if (transfer) await transfer.stop(true); }
    async move(kind) {
      const other = kind === "model" ? "probe" : "model", here = this.slots[kind], there = this.slots[other];
      this.slots = { model: null, probe: null };
      for (const transfer of [here, there]) if (transfer) await transfer.stop(true);
      for (const [side, transfer] of [[other, here], [kind, there]]) {
        if (transfer && transfer.blob.size) this.begin({ name: transfer.name, blob: transfer.blob, key: null }, side); else this.paint(side);
      }
      this.emit();
    }
    async sample(name, kind) {
      this.slots[kind] = { state: "packing", name, blob: { size: 0 }, stop() {} }; this.paint(kind);
      const response = await fetch(`/api/samples/${encodeURIComponent(name)}`).catch(() => null);
      if (!response || !response.ok) { this.slots[kind] = { state: "failed", name, blob: { size: 0 }, problem: await cipm.problem(response), stop() {} }; this.paint(kind); return; }
      this.begin({ name, blob: await response.blob(), key: null }, kind);
    }

    /* ---------- painting: the card's frame stays, its inside is replaced only when the state changes ---------- */
    paint(kind) {
      const card = this.cards[kind], transfer = this.slots[kind], state = transfer ? transfer.state : "empty";
      const key = `${state}|${transfer ? transfer.name : ""}|${transfer && transfer.problem ? transfer.problem.message : ""}`;
      if (card.dataset.key !== key) {
        card.dataset.key = key; card.dataset.state = state;
        card.replaceChildren(...(transfer ? this.full(kind, transfer) : this.empty(kind)));
      }
      if (transfer) this.meter(card, transfer);
    }
    empty(kind) {
      const slot = SLOTS[kind];
      const input = (folder) => {
        const node = el("input", { type: "file", multiple: true, class: "visually-hidden", tabindex: "-1", "aria-hidden": "true", "data-role": folder ? "folder" : "file" });
        if (folder) node.webkitdirectory = true;
        node.addEventListener("change", () => this.choose(node.files, kind));
        return node;
      };
      const [file, folder] = [input(false), input(true)];
      const button = (text, node) => el("button", { type: "button", class: "cipm-button", onclick: () => node.click() }, text);
      return [el("h3", {}, slot.title), el("p", { class: "upload-call" }, slot.text), el("p", { class: "upload-hint" }, slot.formats),
        el("div", { class: "upload-actions" }, button("Choose file", file), button("Choose folder", folder)), file, folder];
    }
    full(kind, transfer) {
      const other = kind === "model" ? "probe data" : "the model";
      const button = (text, action, extra) => el("button", { type: "button", class: `cipm-button subtle ${extra || ""}`, onclick: action }, text);
      const busy = transfer.state === "uploading" || transfer.state === "starting";
      const problem = transfer.problem && el("p", { class: "upload-problem", role: "alert" }, el("b", {}, transfer.problem.message), transfer.problem.fix ? ` ${transfer.problem.fix}` : "");
      return [el("h3", {}, SLOTS[kind].title, transfer.state === "done" ? el("span", { class: "upload-ok" }, "ready") : ""),
        el("p", { class: "upload-name", title: transfer.name }, transfer.name, el("span", {}, transfer.blob.size ? cipm.bytes(transfer.blob.size) : "")),
        problem || el("div", { class: "upload-meter", role: "progressbar", "aria-label": `Upload of ${transfer.name}`, "aria-valuemin": "0", "aria-valuemax": "100" }, el("i", {})),
        problem ? null : el("p", { class: "upload-rate" }),
        el("div", { class: "upload-actions" },
          transfer.state === "failed" && transfer.run ? button("Retry", () => transfer.run()) : null,
          button(busy ? "Cancel" : "Remove", () => this.remove(kind)),
          transfer.state === "packing" ? null : button(`This is ${other}`, () => this.move(kind)))].filter(Boolean);
    }
    meter(card, transfer) {
      const bar = card.querySelector(".upload-meter"), rate = card.querySelector(".upload-rate");
      if (!bar) return;
      const seen = transfer.state === "done" ? transfer.blob.size : Math.min(transfer.seen || transfer.sent || 0, transfer.blob.size);
      const share = transfer.blob.size ? seen / transfer.blob.size : transfer.state === "done" ? 1 : 0;
      bar.firstChild.style.transform = `scaleX(${share})`;
      bar.setAttribute("aria-valuenow", String(Math.round(share * 100)));
      const left = transfer.speed > 0 ? ` \u00b7 ${cipm.duration((transfer.blob.size - seen) / transfer.speed)} left` : "";
      rate.textContent = transfer.state === "packing" ? "Reading\u2026" : transfer.state === "done" ? "Uploaded" :
        transfer.note || `${Math.floor(share * 100)} %${transfer.speed ? ` \u00b7 ${cipm.bytes(transfer.speed)}/s` : ""}${left}`;
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("[data-sample]");
    if (button && cipm.uploader) cipm.uploader.sample(button.dataset.sample, button.dataset.kind);
  });
  cipm.component("Uploader", Uploader);
})();
