// SPDX-License-Identifier: Apache-2.0
// What was clicked at: who it is about, how it went, why it is refused, and the line that would allow it.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.module.js";
import { age, amount, named, service } from "./model.js";
import { ask } from "./source.js";

const ASKABLE = ["tcp", "udp", "icmp", "icmpv6"];
const SPAN = 300;

export function Panel({ model, picked, pick }) {
  if (!picked) {
    return html`<h2>Nothing is chosen</h2>
      <p class="faint">Click at an edge, a container, or a line below: here stands who it is about, and why it is refused.</p>
      <${Why} key="free" question=${{ source: "", destination: "", protocol: "tcp", port: "" }} />`;
  }
  if (picked.kind === "container") return html`<${Container} key=${picked.name} ...${{ model, name: picked.name, pick }} />`;
  if (picked.kind === "network") return html`<${Network} ...${{ model, name: picked.name }} />`;
  if (picked.kind === "policy") return html`<${Policy} ...${{ model, name: picked.name, pick }} />`;
  return html`<${Edge} key=${picked.keys[0]} ...${{ model, keys: picked.keys, pick }} />`;
}

function Edge({ model, keys, pick }) {
  const lines = keys.map((key) => [key, (model.picture.lines || {})[key]]).filter(([, line]) => line);
  if (!lines.length) return html`<p class="empty">It is not there any more.</p>`;
  if (lines.length > 1) {
    const [, first] = lines[0];
    return html`<h2>${named(first.source)} → ${named(first.destination)}</h2>
      <p class="faint">${lines.length} lines</p>
      <ul class="steps">${lines.slice(0, 50).map(([key, line]) => html`<li key=${key}
          class=${line.verdict === "refused" ? "stop" : ""}>
        <button onClick=${() => pick({ kind: "edge", keys: [key] })}>${service(line)}</button>${" "}
        <span class=${line.verdict}>${line.verdict}</span> ${line.connections} ${line.reason}</li>`)}</ul>`;
  }
  const [key, line] = lines[0];
  return html`<h2>${named(line.source)} → ${named(line.destination)} ${service(line)}</h2>
    <p class=${line.verdict}>${line.verdict === "refused" ? `✕ REFUSED ${line.connections}` : "ALLOWED"} ${line.reason}</p>
    <dl>
      <dt>network</dt><dd>${line.network}</dd>
      <dt>connections</dt><dd>${line.connections}</dd>
      <dt>sent</dt><dd>${amount(line.sent_bytes, "B")}, ${line.sent_packets} packets</dd>
      <dt>received</dt><dd>${amount(line.received_bytes, "B")}, ${line.received_packets} packets</dd>
      <dt>last</dt><dd>${age(model.now() - line.last)} ago</dd>
    </dl>
    <${Chart} samples=${model.samples.get(key) || []} refused=${line.verdict === "refused"} now=${model.now()} />
    <${Why} key=${key} line=${line} auto=${line.verdict === "refused"} question=${{ source: line.source,
      destination: line.destination, protocol: line.protocol, port: line.port || "" }} />
    ${line.verdict === "allowed" ? html`<${Live} key=${`live ${key}`} line=${line} />` : null}`;
}

function Chart({ samples, refused, now }) {
  const place = useRef(null);
  const plot = useRef(null);
  const moments = [];
  const values = [];
  // What was not said has not changed: between two totals that are far apart it grew in the last second.
  for (let i = 1; i < samples.length; i += 1) {
    const [before, bytes, connections] = samples[i - 1];
    const [at, sum, count] = samples[i];
    if (at - before > 2.5) {
      moments.push(before + 1 - now, at - 1 - now);
      values.push(0, 0);
    }
    const seconds = Math.min(Math.max(at - before, 1), 2);
    moments.push(at - now);
    values.push(Math.max(refused ? count - connections : (sum - bytes) * 8, 0) / seconds);
  }
  if (samples.length) {
    const last = samples[samples.length - 1][0] - now;
    if (last < -2) {
      moments.push(last + 1, 0);
      values.push(0, 0);
    }
  }
  useEffect(() => {
    const css = getComputedStyle(document.documentElement);
    const color = (name) => css.getPropertyValue(`--${name}`).trim();
    const axis = { stroke: color("faint"), grid: { show: false }, ticks: { show: false }, font: "11px sans-serif" };
    plot.current = new window.uPlot({
      width: place.current.clientWidth || 280, height: 130, cursor: { show: false }, legend: { show: false },
      scales: { x: { time: false, range: [-SPAN, 0] }, y: { range: (u, low, high) => [0, high || 1] } },
      series: [{}, { stroke: color(refused ? "refused" : "accent"), width: 1.5, points: { show: false } }],
      axes: [{ ...axis, size: 26, values: (u, all) => all.map((v) => (v ? `${v} s` : "now")) },
        { ...axis, size: 62, values: (u, all) => all.map((v) => amount(v, refused ? "/s" : "b/s")) }],
    }, [[], []], place.current);
    return () => plot.current.destroy();
  }, [refused]);
  useEffect(() => plot.current.setData([moments, values]));
  return html`<div class="chart" ref=${place} role="img" aria-label="the last five minutes"></div>`;
}

function Live({ line }) {
  const [rows, setRows] = useState(null);
  const look = () => ask("/flows", { network: line.network, source: line.source, destination: line.destination,
    protocol: line.protocol, verdict: line.verdict, ...(line.port ? { port: line.port } : {}) })
    .then((found) => setRows(found.filter((one) => one.state)), () => setRows([]));
  useEffect(() => { look(); }, []);
  return html`<h3>Open connections <button onClick=${look}>look again</button></h3>
    ${rows && !rows.length ? html`<p class="faint">none</p>` : null}
    ${rows && rows.length ? html`<ul class="steps">${rows.map((one) => html`<li>
      ${one.source_address}:${one.source_port} → ${one.destination_address}${one.published ? ` (${one.published})` : ""}${" "}
      <span class="faint">${one.state}, ${amount(one.sent_bytes + one.received_bytes, "B")}, ${age(one.idle)} ago</span>
    </li>`)}</ul>` : null}`;
}

export function Why({ question, line, auto }) {
  const [asked, setAsked] = useState(question);
  const [answer, setAnswer] = useState(null);
  const known = asked.source && asked.destination && ASKABLE.includes(asked.protocol);
  const look = async () => {
    setAnswer({ waiting: true });
    try {
      const words = { ...asked };
      if (!words.port || words.protocol.startsWith("icmp") || words.destination.startsWith(":")) delete words.port;
      setAnswer(await ask("/why", words));
    } catch (error) {
      setAnswer({ error: error.message });
    }
  };
  useEffect(() => { if (auto && known) look(); }, []);
  const set = (name) => (event) => setAsked({ ...asked, [name]: event.target.value });
  const enter = (event) => { if (event.key === "Enter" && known) look(); };
  return html`<h3>Why?</h3>
    <div class="ask" onKeyDown=${enter}>
      <input aria-label="from" placeholder="from" value=${asked.source} onInput=${set("source")} />
      <input aria-label="to" placeholder="to" value=${asked.destination} onInput=${set("destination")} />
      <input aria-label="protocol" placeholder="tcp" value=${asked.protocol} onInput=${set("protocol")} />
      <input aria-label="port" placeholder="port" value=${asked.port} onInput=${set("port")} />
      <button disabled=${!known} onClick=${look}>why</button>
    </div>
    ${line && !known ? html`<p class="faint"><${Meaning} reason=${line.reason} /></p>` : null}
    ${answer ? html`<${Answer} answer=${answer} line=${line} />` : null}`;
}

function Answer({ answer, line }) {
  if (answer.waiting) return html`<p class="faint">asking …</p>`;
  if (answer.error) {
    return html`<p class="refused">${answer.error}</p>${line ? html`<p class="faint"><${Meaning} reason=${line.reason} /></p>` : null}`;
  }
  const { program, remedy } = answer;
  const said = program.agrees === null ? `the packet programs were not asked: ${program.unasked}`
    : program.agrees ? "the packet programs say the same" : `the packet programs say otherwise: ${program.verdict} ${program.reason}`;
  return html`<p><strong class=${answer.verdict}>${answer.verdict.toUpperCase()}</strong> ${answer.reason}
      ${answer.action === "reject" && answer.verdict === "refused" ? " (rejected at once)" : ""}</p>
    <ul class="steps">${answer.steps.map((step) => html`<li class=${step.result === "refused" ? "stop" : ""}>
      <span class="faint">${step.step} ${step.subject}</span> ${step.text}${step.result === "refused" ? " ← refused here" : ""}
    </li>`)}</ul>
    <p class=${program.agrees === false ? "lost" : "faint"}>${said}</p>
    ${answer.verdict === "refused" ? html`<${Remedy} remedy=${remedy} hint=${answer.hint} meaning=${answer.meaning} />` : null}`;
}

function Remedy({ remedy, hint, meaning }) {
  const [copied, setCopied] = useState(false);
  if (!remedy.text) {
    return html`<h3>To allow it</h3><p>${hint || "No policy decides this."}</p><p class="faint">${meaning}</p>`;
  }
  const copy = async () => {
    await navigator.clipboard.writeText(remedy.text);
    setCopied(true);
  };
  return html`<h3>To allow it ${navigator.clipboard ? html`<button onClick=${copy}>${copied ? "copied" : "copy"}</button>` : null}</h3>
    <p class="faint">${hint}${remedy.left_out.length ? `; left out: ${remedy.left_out.join("; ")}` : ""}</p>
    <pre class="yaml">${remedy.text.split("\n").map((text) => html`<span
      class=${text.endsWith("# added") ? "added" : ""}>${text}${"\n"}</span>`)}</pre>
    <p class="faint">It would be ${remedy.verdict} then. Put into force by: datapathctl policy apply -f FILE</p>`;
}

let meanings;

function Meaning({ reason }) {
  const [text, setText] = useState("");
  useEffect(() => {
    meanings = meanings || ask("/meanings").catch(() => ({}));
    meanings.then((found) => setText(found[reason] || ""));
  }, [reason]);
  return text;
}

function Container({ model, name, pick }) {
  const about = (model.picture.containers || {})[name];
  const lines = model.lines().filter((line) => line.source === name || line.destination === name)
    .sort((a, b) => (a.verdict < b.verdict ? 1 : a.verdict > b.verdict ? -1 : b.last - a.last));
  return html`<h2>${named(name)}</h2>
    ${about ? html`<dl>
      ${Object.entries(about.networks).map(([network, addresses]) => html`<dt>${network}</dt><dd>${addresses.join(", ")}</dd>`)}
      ${about.ports.length ? html`<dt>ports</dt><dd>${about.ports.join(", ")}</dd>` : null}
      ${Object.entries(about.labels).map(([key, value]) => html`<dt>label</dt><dd>${key}=${value}</dd>`)}
    </dl>` : html`<p class="faint">${["host", "outside", "another-host", ""].includes(name) ? "" : "It is not there any more."}</p>`}
    <h3>Talks to</h3>
    ${lines.length ? null : html`<p class="faint">nobody</p>`}
    <ul class="steps">${lines.slice(0, 50).map((line) => html`<li key=${line.key} class=${line.verdict === "refused" ? "stop" : ""}>
      <button onClick=${() => pick({ kind: "edge", keys: [line.key] })}>${named(line.source)} → ${named(line.destination)} ${service(line)}</button>${" "}
      <span class=${line.verdict}>${line.verdict === "refused" ? `✕ ${line.connections}` : line.connections}</span></li>`)}</ul>`;
}

function Network({ model, name }) {
  const about = (model.picture.networks || {})[name];
  if (!about) return html`<h2>${name}</h2><p class="faint">It is not there any more.</p>`;
  return html`<h2>${name}</h2><dl>
    <dt>driver</dt><dd>${about.driver}</dd><dt>subnets</dt><dd>${about.subnets.join(", ")}</dd>
    <dt>internal</dt><dd>${about.internal ? "yes" : "no"}</dd><dt>icc</dt><dd>${about.icc ? "on" : "off"}</dd>
    <dt>flows</dt><dd>${about.watched ? "counted" : "not counted: make it with -o com.datapath.flows=true"}</dd></dl>`;
}

function Policy({ model, name }) {
  const about = (model.picture.policies || {})[name];
  if (!about) return html`<h2>${name}</h2><p class="faint">It is not there any more.</p>`;
  return html`<h2>policy ${name}</h2><dl>
    <dt>for</dt><dd>${about.subject}</dd><dt>in</dt><dd>${about.ingress}</dd><dt>out</dt><dd>${about.egress}</dd>
    <dt>mode</dt><dd>${about.mode}</dd><dt>matches</dt><dd>${about.matches}</dd><dt>hits</dt><dd>${about.openings}</dd>
    <dt>refused</dt><dd>${about.refused}</dd></dl>`;
}
