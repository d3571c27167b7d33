// SPDX-License-Identifier: Apache-2.0
// The page: a drawing, a panel beside it, tables below, all of the same picture under the same filter. Whatever a host
// calls its containers stands in it as text: nothing here makes markup of it.

import { html, render, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.module.js";
import { Graph } from "./graph.js";
import { Model, parseFilter } from "./model.js";
import { Panel } from "./panel.js";
import { enter, watch } from "./source.js";
import { FlowTable, Matrix, Policies } from "./tables.js";

const TABS = ["Flows", "Matrix", "Refused", "Policies"];
const model = new Model();

function linked() {
  const found = new URLSearchParams(location.hash.slice(1));
  return { filter: found.get("filter") || "", tab: TABS.includes(found.get("tab")) ? found.get("tab") : "Flows" };
}

function Page() {
  const [, setVersion] = useState(0);
  const [state, setState] = useState("lost");
  const [{ filter, tab }, setView] = useState(linked());
  const [picked, pick] = useState(null);
  const words = useMemo(() => parseFilter(filter), [filter]);
  const keys = picked && picked.kind === "edge" ? picked.keys : [];
  useEffect(() => watch((kind, said) => {
    if (kind === "picture") model.whole(said);
    else model.change(said);
    setVersion(model.version);
  }, setState), []);
  useEffect(() => { // ages and rates go on while nothing is said
    const timer = setInterval(() => setVersion((had) => had + 0.001), 2000);
    return () => clearInterval(timer);
  }, []);
  useEffect(() => {
    const found = new URLSearchParams();
    if (filter) found.set("filter", filter);
    if (tab !== TABS[0]) found.set("tab", tab);
    history.replaceState(null, "", `#${found}`);
  }, [filter, tab]);
  const host = (model.picture.host || {})[""] || {};
  return html`
    <header>
      <h1>datapath${host.name ? ` · ${host.name}` : ""}</h1>
      <label class="filter">filter <input value=${filter} placeholder="network:shop verdict:refused db"
        onInput=${(event) => setView({ filter: event.target.value, tab })} /></label>
      ${filter ? html`<button onClick=${() => setView({ filter: "", tab })}>all</button>` : null}
      <${State} state=${state} error=${host.error} />
    </header>
    <main>
      <${Drawing} ...${{ words, picked, pick, host, moment: model.moment() }} />
      <aside aria-live="polite"><${Panel} model=${model} picked=${picked} pick=${pick} /></aside>
    </main>
    <section class="bottom">
      <div role="tablist">${TABS.map((name) => html`<button role="tab" id=${`tab-${name}`} aria-controls="tab"
        aria-selected=${name === tab ? "true" : "false"} onClick=${() => setView({ filter, tab: name })}>${name}</button>`)}</div>
      <div role="tabpanel" id="tab" aria-labelledby=${`tab-${tab}`} tabindex="0">
        ${tab === "Matrix" ? html`<${Matrix} ...${{ model, words, pick }} />`
          : tab === "Policies" ? html`<${Policies} ...${{ model, pick }} />`
          : html`<${FlowTable} ...${{ model, words, pick, picked: keys, refused: tab === "Refused" }} />`}
      </div>
    </section>
    <${Footer} host=${host} />`;
}

function State({ state, error }) {
  if (state === "closed") return html`<span class="lost" role="status">no session: open the address that datapathctl web prints</span>`;
  if (state !== "live") return html`<span class="lost" role="status">○ not connected</span>`;
  if (error) return html`<span class="lost" role="status">○ ${error}</span>`;
  return html`<span class="live" role="status">● live</span>`;
}

function Drawing({ words, picked, pick, host, moment }) {
  const place = useRef(null);
  const graph = useRef(null);
  useEffect(() => {
    graph.current = new Graph(place.current, pick);
    window.datapathGraph = graph.current.cy; // for who looks at it by hand, and for tests
    const watcher = new ResizeObserver(() => graph.current.cy.resize());
    watcher.observe(place.current);
    return () => watcher.disconnect();
  }, []);
  useEffect(() => {
    graph.current.draw(model, words, picked && picked.kind === "edge" ? picked.keys : []);
  }, [words, picked, moment]);
  const empty = !model.entries("containers").length && !model.lines().length;
  return html`<div class="graph">
    <div class="drawing" ref=${place} role="img" aria-label="containers in their networks; the tables below say the same"></div>
    <div class="tools"><button onClick=${() => graph.current.fit()}>fit</button></div>
    ${empty ? html`<p class="empty">No container is running.</p>` : null}
    ${!empty && host.watched === 0 ? html`<p class="empty">No network counts who talks to whom: make it with
      -o com.datapath.flows=true</p>` : null}
    <div class="hints">dashed, ✕: refused · the wider, the busier</div>
  </div>`;
}

function Footer({ host }) {
  const cost = model.picture.cost || {};
  const parts = ["reader", "server"].filter((name) => cost[name]);
  const percent = parts.reduce((sum, name) => sum + cost[name].percent, 0);
  const memory = parts.reduce((sum, name) => sum + cost[name].megabytes, 0);
  return html`<footer>
    <span>${host.unplaced ? html`<span class="lost">${host.unplaced} packets by no name: the table of totals is full</span>` : "totals are exact"}</span>
    ${host.more ? html`<span class="lost">only the ${model.lines().length} latest lines</span>` : null}
    <span>${model.entries("containers").length} containers · ${model.lines().length} lines</span>
    <span class="grow"></span>
    <span>${parts.length ? `this page costs the host ${percent.toFixed(1)} % of a processor, ${memory} MB` : ""}</span>
  </footer>`;
}

await enter();
render(html`<${Page} />`, document.getElementById("page"));
