// SPDX-License-Identifier: Apache-2.0
// The same as the drawing, for who reads, or uses no mouse.

import { html } from "./vendor/htm-preact.module.js";
import { age, amount, fits, named, service } from "./model.js";

const MOST_ROWS = 200;
const MOST_CELLS = 40;

function pressed(act) {
  return (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      act();
    }
  };
}

function Row({ act, selected, children }) {
  return html`<tr tabindex="0" aria-selected=${selected ? "true" : "false"} onClick=${act} onKeyDown=${pressed(act)}>
    ${children}
  </tr>`;
}

function more(count, shown) {
  return count > shown ? html`<p class="empty">and ${count - shown} more: filter them</p>` : null;
}

export function FlowTable({ model, words, refused, pick, picked }) {
  const lines = model.lines()
    .filter((line) => fits(line, words) && (!refused || line.verdict === "refused"))
    .sort((a, b) => b.last - a.last);
  if (!lines.length) return html`<p class="empty">${refused ? "Nothing is refused." : "Nothing was seen."}</p>`;
  return html`<table>
      <thead><tr>
        <th>FROM</th><th>TO</th><th>PORT</th><th>NETWORK</th><th>VERDICT</th><th class="number">RATE</th>
        <th class="number">CONNS</th><th class="number">SENT</th><th class="number">RECEIVED</th><th class="number">LAST</th>
        <th>BY</th>
      </tr></thead>
      <tbody>${lines.slice(0, MOST_ROWS).map((line) => html`<${Row} key=${line.key}
          act=${() => pick({ kind: "edge", keys: [line.key] })} selected=${picked.includes(line.key)}>
        <td>${named(line.source)}</td><td>${named(line.destination)}</td><td>${service(line)}</td><td>${line.network}</td>
        <td class=${line.verdict}>${line.verdict === "refused" ? "✕ " : ""}${line.verdict}</td>
        <td class="number">${rate(model.rate(line.key).bytes)}</td>
        <td class="number">${line.connections}</td>
        <td class="number">${amount(line.sent_bytes, "B")}</td><td class="number">${amount(line.received_bytes, "B")}</td>
        <td class="number">${age(model.now() - line.last)}</td><td>${line.reason}</td>
      <//>`)}</tbody>
    </table>${more(lines.length, MOST_ROWS)}`;
}

function rate(bytes) {
  return bytes >= 1 ? amount(bytes * 8, "b/s") : "";
}

export function Matrix({ model, words, pick }) {
  const cells = new Map();
  const weights = new Map();
  for (const line of model.lines()) {
    if (!fits(line, words)) continue;
    const key = `${line.source}\t${line.destination}`;
    const cell = cells.get(key) || { allowed: 0, refused: 0, keys: [] };
    cell[line.verdict] += line.connections;
    cell.keys.push(line.key);
    cells.set(key, cell);
    for (const name of [line.source, line.destination]) weights.set(name, Math.max(weights.get(name) || 0, line.last));
  }
  if (!cells.size) return html`<p class="empty">Nothing was seen.</p>`;
  const latest = [...weights].sort((a, b) => b[1] - a[1]).slice(0, MOST_CELLS).map(([name]) => name).sort();
  return html`<table class="matrix">
      <thead><tr><th>FROM ↓ TO →</th>${latest.map((name) => html`<th key=${name}>${named(name)}</th>`)}</tr></thead>
      <tbody>${latest.map((source) => html`<tr key=${source}><th>${named(source)}</th>${latest.map((destination) => {
        const cell = cells.get(`${source}\t${destination}`);
        if (!cell) return html`<td key=${destination} class="faint">·</td>`;
        const act = () => pick({ kind: "edge", keys: cell.keys });
        return html`<td key=${destination} tabindex="0" onClick=${act} onKeyDown=${pressed(act)}>
          ${cell.allowed ? html`<span class="allowed">${cell.allowed}</span>` : null}
          ${cell.refused ? html` <span class="refused">✕ ${cell.refused}</span>` : null}
          ${!cell.allowed && !cell.refused ? html`<span class="allowed">✓</span>` : null}
        </td>`;
      })}</tr>`)}</tbody>
    </table>${more(weights.size, MOST_CELLS)}`;
}

export function Policies({ model, pick }) {
  const policies = model.entries("policies").sort(([a], [b]) => (a < b ? -1 : 1));
  if (!policies.length) {
    return html`<p class="empty">There are no policies: who is on one network may talk to each other, unless it says
      otherwise itself. "datapathctl policy suggest" writes some from what was seen.</p>`;
  }
  return html`<table>
    <thead><tr><th>NAME</th><th>FOR</th><th>IN</th><th>OUT</th><th>MODE</th><th class="number">MATCHES</th>
      <th class="number">HITS</th><th class="number">REFUSED</th></tr></thead>
    <tbody>${policies.slice(0, MOST_ROWS).map(([name, one]) => html`<${Row} key=${name} act=${() => pick({ kind: "policy", name })}>
      <td>${name}</td><td>${one.subject}</td><td>${one.ingress}</td><td>${one.egress}</td><td>${one.mode}</td>
      <td class="number">${one.matches}</td><td class="number">${one.openings}</td>
      <td class="number ${one.refused ? "refused" : ""}">${one.refused}${one.mode === "audit" ? " (would)" : ""}</td>
    <//>`)}</tbody></table>${more(policies.length, MOST_ROWS)}`;
}
