/* Tiles: fetched in batches as raw float16, kept in one cache for all viewers, coloured through a 65,536-entry table. */
(function () {
  "use strict";
  const cipm = window.cipm;
  const SIDE = 256, CELLS = SIDE * SIDE, BATCH = 12, KEPT = 320;

  /* ---------- float16 code -> value ---------- */
  const VALUE = new Float32Array(65536);
  for (let code = 0; code < 65536; code += 1) {
    const sign = code & 0x8000 ? -1 : 1, exponent = (code >> 10) & 31, fraction = code & 1023;
    if (exponent === 0) VALUE[code] = sign * fraction * 2 ** -24;
    else if (exponent === 31) VALUE[code] = fraction ? NaN : sign * Infinity;
    else VALUE[code] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  /* ---------- diverging colours, interpolated in OKLab so that equal steps look equal ---------- */
  const STOPS = {
    light: ["#0a2f5c", "#2a70ae", "#86b8dc", "#f7f7f5", "#f0ab88", "#c9493a", "#6d0a22"],
    dark: ["#c4e2ff", "#5ba3e6", "#275a93", "#17191e", "#8a3322", "#e8694a", "#ffd0b5"],
  };
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const gamma = (value) => (value <= 0.0031308 ? value * 12.92 : 1.055 * value ** (1 / 2.4) - 0.055);
  function toLab(hex) {
    const [r, g, b] = [1, 3, 5].map((at) => linear(parseInt(hex.slice(at, at + 2), 16) / 255));
    const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
    const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
    const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
    return [0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
      1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
      0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s];
  }
  function toRgb([L, a, b]) {
    const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
    const rgb = [4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
      -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
      -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s];
    return rgb.map((value) => Math.round(255 * Math.min(1, Math.max(0, gamma(Math.min(1, Math.max(0, value)))))));
  }
  const ramps = {};
  cipm.ramp = function (scheme) {
    if (ramps[scheme]) return ramps[scheme];
    const labs = STOPS[scheme].map(toLab), steps = 1025, out = new Uint32Array(steps);
    for (let i = 0; i < steps; i += 1) {
      const at = (i / (steps - 1)) * (labs.length - 1), low = Math.min(labs.length - 2, Math.floor(at)), t = at - low;
      const [r, g, b] = toRgb(labs[low].map((value, k) => value + (labs[low + 1][k] - value) * t));
      out[i] = (255 << 24) | (b << 16) | (g << 8) | r;
    }
    return (ramps[scheme] = out);
  };

  /* One table per (limit in units of the tile's scale, colour scheme): code -> RGBA; NaN is clear, so the hatch shows. */
  const tables = new Map();
  cipm.colourTable = function (limit, scheme) {
    const key = `${limit.toPrecision(6)}|${scheme}`;
    if (tables.has(key)) return tables.get(key);
    const ramp = cipm.ramp(scheme), colours = new Uint32Array(65536);
    for (let code = 0; code < 65536; code += 1) {
      const value = VALUE[code];
      if (Number.isNaN(value)) continue;
      const at = limit > 0 ? Math.min(1, Math.max(-1, value / limit)) : 0;
      colours[code] = ramp[Math.round((at + 1) * 512)];
    }
    if (tables.size > 24) tables.delete(tables.keys().next().value);
    const table = { key, colours };
    tables.set(key, table);
    return table;
  };

  /* ---------- the cache ---------- */
  class Tile {
    constructor(codes) { this.codes = codes; this.key = null; this.canvas = null; }
    value(x, y) { return VALUE[this.codes[y * SIDE + x]]; }
    image(table) {
      if (this.key === table.key) return this.canvas;
      this.canvas = this.canvas || cipm.el("canvas", { width: SIDE, height: SIDE });
      const context = this.canvas.getContext("2d");
      const image = context.createImageData(SIDE, SIDE), pixels = new Uint32Array(image.data.buffer);
      for (let i = 0; i < CELLS; i += 1) pixels[i] = table.colours[this.codes[i]];
      context.putImageData(image, 0, 0);
      this.key = table.key;
      return this.canvas;
    }
  }
  const cache = new Map();
  function keep(key, tile) {
    cache.set(key, tile);
    while (cache.size > KEPT) cache.delete(cache.keys().next().value);
  }

  /* One source = one matrix in one order, one statistic. Names its tiles "level/x.y". */
  class TileSource {
    constructor(meta, address, query, stat) {
      this.meta = meta; this.base = `${address}/tiles`; this.query = query; this.stat = stat;
      this.prefix = `${this.base}?${query}&${stat}&${meta.revision}`;
      this.flights = new Set();
    }
    get(level, x, y) {
      const key = `${this.prefix}/${level}/${x}.${y}`, tile = cache.get(key);
      if (tile) { cache.delete(key); cache.set(key, tile); }
      return tile;
    }
    busy(name) { for (const flight of this.flights) if (flight.names.has(name)) return true; return false; }

    /* Fetch what is missing of `wanted` [{level, x, y}]; abort what nobody wants any more. */
    want(wanted, onArrival, onProblem) {
      const names = new Set(wanted.map((tile) => `${tile.level}/${tile.x}.${tile.y}`));
      for (const flight of this.flights) {
        if (![...flight.names].some((name) => names.has(name))) flight.abort.abort();
      }
      const missing = wanted.filter((tile) => !this.get(tile.level, tile.x, tile.y) &&
        !this.busy(`${tile.level}/${tile.x}.${tile.y}`));
      const levels = new Map();
      for (const tile of missing) levels.set(tile.level, [...(levels.get(tile.level) || []), tile]);
      for (const [level, tiles] of levels) {
        for (let i = 0; i < tiles.length; i += BATCH) this.fly(level, tiles.slice(i, i + BATCH), onArrival, onProblem);
      }
    }
    async fly(level, tiles, onArrival, onProblem) {
      const flight = { names: new Set(tiles.map((tile) => `${level}/${tile.x}.${tile.y}`)), abort: new AbortController() };
      this.flights.add(flight);
      const at = tiles.map((tile) => `${tile.x}.${tile.y}`).join(",");
      const address = `${this.base}?${this.query}&level=${level}&stat=${this.stat}&at=${at}&rev=${this.meta.revision}`;
      try {
        const response = await fetch(address, { signal: flight.abort.signal });
        if (!response.ok) throw response;
        const buffer = await response.arrayBuffer();
        if (buffer.byteLength !== tiles.length * CELLS * 2) throw new Error("short tile answer");
        tiles.forEach((tile, i) =>
          keep(`${this.prefix}/${level}/${tile.x}.${tile.y}`, new Tile(new Uint16Array(buffer, i * CELLS * 2, CELLS))));
        this.flights.delete(flight);
        onArrival();
      } catch (error) {
        this.flights.delete(flight);
        if (error.name !== "AbortError") onProblem(await cipm.problem(error instanceof Response ? error : null));
      }
    }
    stop() { for (const flight of this.flights) flight.abort.abort(); }
  }
  cipm.TileSource = TileSource;
  cipm.SIDE = SIDE;
})();
