/* Where the boxes of a model's graph stand: nested modules, each laid out by itself in layers from top to bottom. Pure.
   Layers by longest path, order within a layer by barycentre, places by isotonic regression towards the neighbours.
   Source: Sugiyama, Tagawa, Toda, "Methods for visual understanding of hierarchical system structures" (1981). */
(function () {
  "use strict";
  const cipm = window.cipm;
  const GAP_X = 20, GAP_Y = 26, PAD = 12, TITLE = 22, SLIM = 10, LONGEST = 40, SWEEPS = 6;

  /* The tree of modules and boxes of a graph as the API sends it. A key is "m3" (a module) or "b12" (a box); "" is the top. */
  class Tree {
    constructor(graph) {
      this.graph = graph;
      this.parent = new Map(); this.children = new Map([["", []]]); this.boxes = new Map(); this.first = new Map();
      graph.modules.forEach((module, at) => {
        this.parent.set(`m${at}`, module.parent < 0 ? "" : `m${module.parent}`);
        this.children.set(`m${at}`, []); this.boxes.set(`m${at}`, []);
      });
      graph.boxes.forEach((box, at) => {
        const key = `b${at}`;
        this.parent.set(key, box.parent < 0 ? "" : `m${box.parent}`);
        this.boxes.set(key, [at]); this.first.set(key, at);
        for (let up = this.parent.get(key); up; up = this.parent.get(up)) {
          this.boxes.get(up).push(at);
          if (!this.first.has(up)) this.first.set(up, at);
        }
      });
      for (const [key, up] of this.parent) if (this.first.has(key)) this.children.get(up).push(key);
      for (const inside of this.children.values()) inside.sort((a, b) => this.first.get(a) - this.first.get(b));
      this.ids = new Map(graph.modules.map((module, at) => [module.path, `m${at}`]));
    }
    isModule(key) { return key[0] === "m"; }
    chain(key) { const up = []; for (let at = key; at; at = this.parent.get(at)) up.push(at); return up.reverse(); }
    visible(open) {
      const found = [], walk = (at) => { for (const key of this.children.get(at)) if (open.has(key)) walk(key); else found.push(key); };
      walk("");
      return found;
    }
    /* The modules open at first: whole levels from the top, as long as all together stay legible. */
    opened(most) {
      const open = new Set();
      for (let level = this.children.get("").filter((key) => this.isModule(key)); level.length;) {
        const next = new Set([...open, ...level]);
        if (this.visible(next).length > most) break;
        for (const key of level) open.add(key);
        level = level.flatMap((key) => this.children.get(key)).filter((key) => this.isModule(key));
      }
      return open;
    }
  }

  /* ---------- edges between what is visible, cut at the border of every open module ---------- */
  function segments(tree, open) {
    const shown = new Map();
    for (const key of tree.visible(open)) for (const at of tree.boxes.get(key)) shown.set(at, key);
    const local = new Map();
    const add = (container, from, to, groups) => {
      if (!local.has(container)) local.set(container, new Map());
      const inside = local.get(container), name = `${from}>${to}`;
      if (!inside.has(name)) inside.set(name, { from, to, groups: new Set() });
      for (const group of groups) inside.get(name).groups.add(group);
    };
    for (const [source, target, groups, quiet] of tree.graph.edges) {
      const from = shown.get(source), to = shown.get(target);
      if (quiet || from === to) continue;
      const ups = tree.chain(from), downs = tree.chain(to);
      let depth = 0;
      while (ups[depth] === downs[depth]) depth += 1;
      add(depth ? ups[depth - 1] : "", port(ups, depth, from, "out"), port(downs, depth, to, "in"), groups);
      for (let at = depth; at < ups.length - 1; at += 1) add(ups[at], port(ups, at + 1, from, "out"), `out:${from}`, groups);
      for (let at = depth; at < downs.length - 1; at += 1) add(downs[at], `in:${to}`, port(downs, at + 1, to, "in"), groups);
    }
    return local;
  }
  /* What an edge touches at one level: the box itself, or the port of the open module that it is in. */
  const port = (chain, depth, end, side) => (chain[depth] === end ? end : `${chain[depth]}|${side}:${end}`);
  const owner = (end) => end.split("|")[0];

  /* ---------- one container ---------- */
  function arrange(tree, container, open, local, size) {
    const inner = new Map(), nodes = new Map();
    for (const key of tree.children.get(container)) {
      if (open.has(key)) inner.set(key, arrange(tree, key, open, local, size));
      const [w, h] = inner.has(key) ? [inner.get(key).w, inner.get(key).h] : size(key);
      nodes.set(key, { key, w, h, order: nodes.size });
    }
    const edges = [...(local.get(container) || new Map()).values()];
    for (const { from, to } of edges) {
      if (from.startsWith("in:") && !nodes.has(from)) nodes.set(from, { key: from, w: SLIM, h: 0, order: -1, port: "in" });
      if (to.startsWith("out:") && !nodes.has(to)) nodes.set(to, { key: to, w: SLIM, h: 0, order: Infinity, port: "out" });
    }
    const links = edges.map((edge) => {
      const a = nodes.get(owner(edge.from)), b = nodes.get(owner(edge.to));
      const back = a.order > b.order;
      return { ...edge, a: back ? b : a, b: back ? a : b, back };
    });
    const layers = order(fill(layering(nodes, links), links), links);
    place(layers, links);
    return measure(layers, links, nodes, inner, container);
  }

  /* Where on its box an edge ends, from the box's centre. */
  function offset(inner, node, end) {
    const [key, name] = end.split("|");
    return name && inner.has(key) ? inner.get(key).ports.get(name) - node.w / 2 : 0;
  }

  function layering(nodes, links) {
    const all = [...nodes.values()].sort((a, b) => a.order - b.order);
    const into = new Map(all.map((node) => [node, []])), out = new Map(all.map((node) => [node, []]));
    for (const link of links) { into.get(link.b).push(link.a); out.get(link.a).push(link.b); }
    const above = all.some((node) => node.port === "in") ? 1 : 0;
    for (const node of all) node.layer = Math.max(node.port === "in" ? 0 : above, ...into.get(node).map((other) => other.layer + 1));
    for (const node of [...all].reverse()) {
      if (!into.get(node).length && out.get(node).length) node.layer = Math.min(...out.get(node).map((other) => other.layer)) - 1;
      if (node.port === "in") node.layer = 0;
    }
    const last = Math.max(0, ...all.filter((node) => node.port !== "out").map((node) => node.layer));
    for (const node of all) if (node.port === "out") node.layer = last + 1;
    return all;
  }

  /* Long links get a slim stand-in on every layer that they cross; very long ones run straight. */
  function fill(all, links) {
    const layers = [];
    const put = (node) => { (layers[node.layer] = layers[node.layer] || []).push(node); };
    all.forEach(put);
    for (const link of links) {
      link.path = [link.a];
      const span = link.b.layer - link.a.layer;
      for (let layer = link.a.layer + 1; span <= LONGEST && layer < link.b.layer; layer += 1) {
        const slim = { w: SLIM, h: 0, layer, slim: true };
        put(slim); link.path.push(slim);
      }
      link.path.push(link.b);
    }
    for (let at = 0; at < layers.length; at += 1) layers[at] = layers[at] || [];
    return layers;
  }

  function order(layers, links) {
    const up = new Map(), down = new Map();
    const meet = (map, node, other) => { if (!map.has(node)) map.set(node, []); map.get(node).push(other); };
    for (const { path } of links) for (let at = 1; at < path.length; at += 1) { meet(up, path[at], path[at - 1]); meet(down, path[at - 1], path[at]); }
    const number = (layer) => layer.forEach((node, at) => { node.at = at; });
    layers.forEach(number);
    for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
      const [around, run] = sweep % 2 ? [down, [...layers].reverse()] : [up, layers];
      for (const layer of run) {
        for (const node of layer) {
          const near = around.get(node);
          node.want = near ? near.reduce((sum, other) => sum + other.at, 0) / near.length : node.at;
        }
        layer.sort((a, b) => a.want - b.want || a.at - b.at);
        number(layer);
      }
    }
    return layers;
  }

  /* ---------- places: centres above centres, so that a chain of modules hangs straight ---------- */
  function place(layers, links) {
    const pulls = new Map();
    const meet = (node, other) => { if (!pulls.has(node)) pulls.set(node, []); pulls.get(node).push(other); };
    for (const { path } of links) for (let at = 1; at < path.length; at += 1) { meet(path[at], path[at - 1]); meet(path[at - 1], path[at]); }
    for (const layer of layers) { let x = 0; for (const node of layer) { node.x = x + node.w / 2; x += node.w + GAP_X; } }
    for (let round = 0; round < 2 * SWEEPS; round += 1) {
      for (const layer of round % 2 ? [...layers].reverse() : layers) settle(layer, pulls, round % 2 ? 1 : -1, round > 2);
    }
  }

  /* Move a layer's boxes as near as can be to where their neighbours want them, in order and apart. */
  function settle(layer, pulls, side, both) {
    let base = 0;
    const runs = [];
    layer.forEach((node, at) => {
      if (at) base += (layer[at - 1].w + node.w) / 2 + (layer[at - 1].slim || node.slim ? GAP_X / 2 : GAP_X);
      const near = (pulls.get(node) || []).filter((other) => both || Math.sign(other.layer - node.layer) === side);
      const want = near.length ? near.reduce((sum, other) => sum + other.x, 0) / near.length : node.x;
      runs.push({ sum: (want - base) * (node.slim ? 4 : 1), weight: node.slim ? 4 : 1, nodes: [[node, base]] });
      while (runs.length > 1 && runs.at(-2).sum / runs.at(-2).weight > runs.at(-1).sum / runs.at(-1).weight) {
        const last = runs.pop(), before = runs.at(-1);
        before.sum += last.sum; before.weight += last.weight; before.nodes.push(...last.nodes);
      }
    });
    for (const run of runs) for (const [node, from] of run.nodes) node.x = run.sum / run.weight + from;
  }

  function measure(layers, links, nodes, inner, container) {
    const pad = container ? PAD : 0, all = layers.flat();
    const left = Math.min(...all.map((node) => node.x - node.w / 2)), right = Math.max(...all.map((node) => node.x + node.w / 2));
    let y = container ? TITLE : 0;
    for (const layer of layers) {
      const tall = Math.max(0, ...layer.map((node) => node.h)), port = layer.some((node) => node.port);
      if (port && layer === layers[0]) y = 0;
      for (const node of layer) { node.x += pad - left; node.top = y; node.bottom = y + tall; node.y = node.port ? y : y + (tall - node.h) / 2; }
      y += tall + (port && layer === layers[0] ? Math.max(TITLE, GAP_Y) : GAP_Y);
    }
    const h = y - GAP_Y + (layers.at(-1).some((node) => node.port) ? 0 : pad);
    const ports = new Map([...nodes.values()].filter((node) => node.port).map((node) => [node.key, node.x]));
    return { w: right - left + 2 * pad, h, ports, links, inner, nodes: [...nodes.values()].filter((node) => !node.port) };
  }

  /* ---------- everything in one plane ---------- */
  function flatten(layout, dx, dy, out) {
    for (const node of layout.nodes) {
      const box = { key: node.key, x: dx + node.x - node.w / 2, y: dy + node.y, w: node.w, h: node.h, open: layout.inner.has(node.key) };
      out.boxes.push(box);
      if (box.open) flatten(layout.inner.get(node.key), box.x, box.y, out);
    }
    for (const link of layout.links) out.lines.push(line(layout, link, dx, dy));
  }
  function line(layout, { from, to, groups, path, back }, dx, dy) {
    const ends = back ? [to, from] : [from, to], points = [];
    path.forEach((node, at) => {
      if (node.slim) { points.push([dx + node.x, dy + node.top], [dx + node.x, dy + node.bottom]); return; }
      const x = dx + node.x + offset(layout.inner, node, at ? ends[1] : ends[0]);
      points.push([x, dy + node.y + (at ? 0 : node.h)]);
    });
    const end = back ? from : to;
    return { groups: [...groups], points, arrow: !end.includes(":"), back, from: owner(from), to: owner(to) };
  }

  /* Return {boxes: [{key, x, y, w, h, open}], lines: [{groups, points, arrow}], w, h}; `size(key)` gives [w, h] of a closed box. */
  cipm.layoutGraph = function (tree, open, size) {
    const whole = arrange(tree, "", open, segments(tree, open), size), out = { boxes: [], lines: [], w: whole.w, h: whole.h };
    flatten(whole, 0, 0, out);
    return out;
  };
  cipm.GraphTree = Tree;
})();
