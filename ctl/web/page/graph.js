// SPDX-License-Identifier: Apache-2.0
// The drawing: containers inside their networks, and what is outside of all below them. Where a node stands does not
// change when others come: a container is in two networks as two nodes.

import { amount, fits, named, service } from "./model.js";

// From one container to the next, in a row, of which every other one is moved by half of it; and from row to row. Where
// there are many, what lies between them is not read before the drawing is made larger.
const ROOMY = { wide: 170, high: 84, title: 15 };
const TIGHT = { wide: 112, high: 50, title: 44 };
const MANY_NODES = 60;
const GAP = 70;
const BENT = { allowed: 1, refused: 1.6 }; // how much an edge is, so that it passes by who stands between
const APART = new Set(["host", "outside", "another-host", ""]);
const MOST_NODES = 300; // more are drawn as their networks, each opened by a click
const MOST_LABELS = 400;

export class Graph {
  constructor(element, chosen) {
    this.chosen = chosen;
    this.slots = new Map(); // network -> names by place, as they came
    this.opened = new Set();
    this.box = new Map();
    this.count = 0;
    this.cy = window.cytoscape({
      container: element,
      elements: [],
      layout: { name: "preset" },
      minZoom: 0.05,
      maxZoom: 2.5,
      boxSelectionEnabled: false,
      autounselectify: true,
      pixelRatio: "auto",
    });
    this.cy.on("tap", "edge", (event) => chosen({ kind: "edge", keys: event.target.data("keys") }));
    this.cy.on("tap", "node", (event) => this.tapped(event.target));
    this.restyle();
    this.moved = false;
    this.cy.on("viewport", () => { this.moved = this.moved || !this.fitting; });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.restyle());
  }

  tapped(node) {
    const { kind, name, network } = node.data();
    if (kind === "closed") {
      this.opened.add(name);
      this.redraw?.();
    } else if (kind === "container") this.chosen({ kind: "container", name, network });
    else if (kind === "apart") this.chosen({ kind: "container", name, network: "" });
    else if (kind === "network") this.chosen({ kind: "network", name });
  }

  restyle() {
    const css = getComputedStyle(document.documentElement);
    const color = (name) => css.getPropertyValue(`--${name}`).trim();
    this.cy.style([
      { selector: "node", style: { label: "data(label)", color: color("text"), "font-size": 12,
        "font-family": "system-ui, DejaVu Sans, sans-serif", "background-color": color("node"), "border-width": 1.5,
        "border-color": color("faint"), shape: "round-rectangle", width: 96, height: 30, "text-valign": "center",
        "text-max-width": 90, "text-wrap": "ellipsis", "min-zoomed-font-size": 5 } },
      { selector: "node[kind = 'network']", style: { "background-color": color("network"), "border-width": 1,
        "border-color": color("rule"), "text-valign": "top", "text-halign": "center", padding: 22, "text-margin-y": -4,
        "font-weight": 600, "text-max-width": 900, "font-size": "data(title)", "min-zoomed-font-size": 6 } },
      { selector: "node[kind = 'closed']", style: { width: 150, height: 56, "background-color": color("network"),
        "text-wrap": "wrap", "text-max-width": 140, "border-style": "double", "border-width": 4 } },
      { selector: "node[kind = 'apart']", style: { shape: "ellipse", width: 110, height: 40 } },
      { selector: "node[?gone]", style: { "border-style": "dotted", color: color("faint") } },
      { selector: "edge", style: { width: "data(width)", "line-color": color("allowed"), "curve-style": "straight",
        "target-arrow-shape": "triangle", "target-arrow-color": color("allowed"),
        "arrow-scale": 0.9, opacity: 0.9, "font-size": 11, color: color("text"), "text-background-color": color("ground"),
        "text-background-opacity": 0.85, "text-background-padding": 2, "min-zoomed-font-size": 7 } },
      { selector: "edge[label]", style: { label: "data(label)" } },
      { selector: "edge[bend]", style: { "curve-style": "unbundled-bezier", "control-point-distances": "data(bend)",
        "control-point-weights": 0.5 } },
      { selector: "edge[?many]", style: { "curve-style": "straight", "arrow-scale": 0.6, opacity: 0.55 } },
      { selector: "edge[verdict = 'refused']", style: { "line-style": "dashed", "line-dash-pattern": [6, 4],
        "line-color": color("refused"), "target-arrow-color": color("refused"), "target-arrow-shape": "tee",
        color: color("refused"), opacity: 1 } },
      { selector: ".dim", style: { opacity: 0.15 } },
      { selector: ".picked", style: { "underlay-color": color("accent"), "underlay-opacity": 0.35,
        "underlay-padding": 6, opacity: 1, "z-index": 10 } },
    ]);
  }

  // Draws what is in the model; `words`: the filter; `picked`: keys of lines.
  draw(model, words, picked) {
    this.redraw = () => this.draw(model, words, picked);
    const members = model.entries("containers");
    const collapse = members.length > MOST_NODES;
    const scale = members.length > MANY_NODES && !collapse ? TIGHT : ROOMY;
    const nodes = new Map();
    const place = (network, name, gone) => {
      if (APART.has(name)) {
        const id = `apart\t${name}`;
        if (!nodes.has(id)) nodes.set(id, { id, kind: "apart", name, label: named(name), network: "" });
        return id;
      }
      const parent = `network\t${network}`;
      if (collapse && !this.opened.has(network)) return parent;
      const id = `${network}\t${name}`;
      if (!nodes.has(id)) nodes.set(id, { id, parent, kind: "container", name, network, label: name, gone });
      return id;
    };
    const sizes = new Map(model.entries("networks").map(([name]) => [name, 0]));
    for (const [name, member] of members) {
      for (const network of Object.keys(member.networks)) {
        sizes.set(network, (sizes.get(network) || 0) + 1);
        place(network, name, false);
      }
    }
    const edges = this.edges(model, words, place);
    for (const [network, size] of sizes) {
      const id = `network\t${network}`;
      const shut = collapse && !this.opened.has(network);
      if (!size && ![...nodes.values()].some((node) => node.parent === id)) continue;
      const about = model.picture.networks[network];
      const subnet = about ? about.subnets.join(", ") : "";
      nodes.set(id, { id, kind: shut ? "closed" : "network", name: network, title: scale.title,
        label: shut ? `${network}\n${size} containers` : `${network}  ${subnet}${about?.internal ? "  internal" : ""}` });
    }
    for (const node of nodes.values()) { // of networks that are gone
      if (node.parent && !nodes.has(node.parent)) {
        nodes.set(node.parent, { id: node.parent, kind: "network", name: node.network, label: node.network,
          title: scale.title });
      }
    }
    this.sync(nodes, edges, new Set(picked), words.length > 0, scale);
  }

  // One edge for all that two nodes have to do with each other under one verdict.
  edges(model, words, place) {
    const edges = new Map();
    for (const line of model.lines()) {
      if (!fits(line, words)) continue;
      const source = place(line.network, line.source, true);
      const target = place(line.network, line.destination, true);
      if (source === target) continue;
      const id = `${source}\t>\t${target}\t${line.verdict}`;
      const edge = edges.get(id) || { id, source, target, verdict: line.verdict, keys: [], rate: 0, count: 0,
        services: new Set() };
      edge.keys.push(line.key);
      edge.rate += model.rate(line.key).bytes;
      edge.count += line.connections;
      edge.services.add(service(line));
      edges.set(id, edge);
    }
    const many = edges.size > MOST_LABELS;
    for (const edge of edges.values()) {
      const what = edge.services.size > 1 ? `${edge.services.size} ports` : [...edge.services][0];
      const refused = edge.verdict === "refused";
      if (refused) edge.label = `✕ ${edge.count}`;
      else if (!many) edge.label = edge.rate >= 125 ? `${what} · ${amount(edge.rate * 8, "b/s")}` : what;
      edge.width = refused ? 1.5 : Math.min(1.5 + Math.log10(1 + edge.rate / 1000), 7);
      edge.width = Math.round(edge.width * 2) / 2;
      edge.many = many;
      delete edge.services;
      delete edge.rate;
      delete edge.count;
    }
    return edges;
  }

  sync(nodes, edges, picked, filtered, scale) {
    const cy = this.cy;
    const moved = this.scale !== scale;
    this.scale = scale;
    const fresh = [];
    cy.batch(() => {
      cy.edges().forEach((edge) => { if (!edges.has(edge.id())) edge.remove(); });
      cy.nodes().forEach((node) => {
        const wanted = nodes.get(node.id());
        if (!wanted || wanted.kind !== node.data("kind")) node.remove();
      });
      const parents = [...nodes.values()].sort((a, b) => Boolean(a.parent) - Boolean(b.parent));
      for (const data of parents) {
        const had = cy.getElementById(data.id);
        if (had.nonempty()) update(had, data);
        else fresh.push(cy.add({ group: "nodes", data }));
      }
      for (const data of edges.values()) {
        const had = cy.getElementById(data.id);
        if (had.nonempty()) update(had, data);
        else cy.add({ group: "edges", data });
      }
      if (fresh.length || moved) this.arrange(nodes);
      const ends = new Set();
      cy.edges().forEach((edge) => {
        if (!edge.data("many")) this.bend(edge);
        edge.toggleClass("picked", edge.data("keys").some((key) => picked.has(key)));
        ends.add(edge.data("source"));
        ends.add(edge.data("target"));
      });
      cy.nodes("[kind != 'network']").forEach((node) => { node.toggleClass("dim", filtered && !ends.has(node.id())); });
    });
    if (fresh.length && !this.moved) this.fit();
  }

  // Networks stand in rows, as near to a square as they can; their members in rows inside, in the order in which they
  // came first. Whoever leaves, leaves his place free for the next.
  arrange(nodes) {
    const { wide, high: tall, title } = this.scale;
    const networks = [...nodes.values()].filter((node) => node.kind === "network" || node.kind === "closed");
    const boxes = networks.map((network) => {
      const inside = [...nodes.values()].filter((node) => node.parent === network.id).map((node) => node.id);
      const slots = this.slots.get(network.id) || [];
      this.slots.set(network.id, slots);
      const there = new Set(inside);
      slots.forEach((id, at) => { if (id && !there.has(id)) slots[at] = null; });
      const known = new Set(slots);
      for (const id of inside) {
        if (known.has(id)) continue;
        const free = slots.indexOf(null);
        if (free >= 0) slots[free] = id;
        else slots.push(id);
      }
      const side = Math.max(Math.ceil(Math.sqrt(slots.length)), 1);
      // The last row of the square is begun when the last column is full.
      const rows = side > 1 && slots.length <= side * (side - 1) ? side - 1 : side;
      return { network, slots, width: (side + (rows > 1 ? 0.5 : 0)) * wide + GAP, height: rows * tall + GAP + title };
    });
    const area = boxes.reduce((sum, box) => sum + box.width * box.height, 0);
    const most = Math.max(Math.sqrt(area * 2.4), ...boxes.map((box) => box.width));
    let x = 0;
    let y = 0;
    let high = 0;
    for (const box of boxes) {
      if (x && x + box.width > most) {
        x = 0;
        y += high;
        high = 0;
      }
      if (box.network.kind === "closed") this.put(box.network.id, x + wide / 2, y + tall / 2);
      box.slots.forEach((id, at) => {
        const [row, across] = spot(at);
        const column = across + (row % 2) / 2;
        if (id) this.put(id, x + wide / 2 + column * wide, y + tall / 2 + row * tall);
      });
      x += box.width;
      high = Math.max(high, box.height);
    }
    [...nodes.values()].filter((node) => node.kind === "apart").forEach((node, at) => {
      this.put(node.id, wide / 2 + at * 220, y + high + 40);
    });
  }

  bend(edge) {
    const [from, to] = [edge.source().position(), edge.target().position()];
    const far = Math.hypot(from.x - to.x, from.y - to.y);
    const bend = Math.round(Math.min(Math.max(far * 0.35, 36), 90) * BENT[edge.data("verdict")]);
    if (edge.data("bend") !== bend) edge.data("bend", bend);
  }

  put(id, x, y) {
    const node = this.cy.getElementById(id);
    if (!node.data("dragged")) node.position({ x, y });
  }

  fit() {
    this.fitting = true;
    this.cy.resize();
    this.cy.fit(undefined, 30);
    if (this.cy.zoom() > 1.4) {
      this.cy.zoom(1.4);
      this.cy.center();
    }
    this.fitting = false;
    this.moved = false;
  }
}

// Row and column of a place: each square number of them is a square, so that none moves when there are more.
function spot(at) {
  const shell = Math.floor(Math.sqrt(at));
  const along = at - shell * shell;
  return along < shell ? [along, shell] : [shell, along - shell];
}

function update(element, data) {
  const had = element.data();
  for (const [name, value] of Object.entries(data)) {
    if (name === "keys" ? String(had.keys) !== String(value) : had[name] !== value) {
      if (name !== "id" && name !== "parent") element.data(name, value);
    }
  }
}
