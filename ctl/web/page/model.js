// SPDX-License-Identifier: Apache-2.0
// What the page knows: the picture as it came, how fast totals grow, and what the filter leaves of them.

export const MOST_SAMPLES = 300;
const FIELDS = { network: "network", from: "source", to: "destination", port: "port", proto: "protocol",
  verdict: "verdict", reason: "reason" };

export class Model {
  constructor() {
    this.picture = {};
    this.version = 0;
    this.offset = 0; // what this browser's clock is ahead of the host's CLOCK_MONOTONIC, in seconds
    this.rates = new Map(); // key of a line -> { at, sent, received, connections } a second
    this.samples = new Map(); // key of a line -> [[moment, bytes, connections], …]
  }

  whole(said) {
    const before = this.picture.lines || {};
    this.picture = {};
    this.apply(said, before);
  }

  change(said) {
    this.apply({ ...said, gone: said.gone || {} }, this.picture.lines || {});
  }

  apply({ put, gone, now }, before) {
    this.offset = performance.now() / 1000 - now;
    for (const [key, line] of Object.entries(put.lines || {})) this.grow(key, before[key], line, now);
    for (const [section, keys] of Object.entries(gone || {})) {
      for (const key of keys) {
        delete (this.picture[section] || {})[key];
        if (section === "lines") {
          this.rates.delete(key);
          this.samples.delete(key);
        }
      }
    }
    for (const [section, entries] of Object.entries(put)) {
      this.picture[section] = Object.assign(this.picture[section] || Object.create(null), entries);
    }
    this.version += 1;
  }

  // A total that has not grown is not sent: its rate is 0 when the next picture comes.
  grow(key, before, line, now) {
    const bytes = line.sent_bytes + line.received_bytes;
    const samples = this.samples.get(key) || [];
    const last = samples[samples.length - 1];
    if (before && last && now > last[0]) {
      const seconds = Math.max(now - last[0], 1);
      // What had been quiet for long has grown in the last second of that time.
      const span = Math.min(seconds, 2);
      this.rates.set(key, {
        at: now,
        bytes: Math.max(bytes - last[1], 0) / span,
        connections: Math.max(line.connections - last[2], 0) / span,
      });
    }
    samples.push([now, bytes, line.connections]);
    if (samples.length > MOST_SAMPLES) samples.shift();
    this.samples.set(key, samples);
  }

  // What has not changed as long as neither the picture has, nor how fast it grows: that ends without a word.
  moment() {
    let flowing = 0;
    for (const { at } of this.rates.values()) flowing += this.now() - at < 3;
    return `${this.version} ${flowing}`;
  }

  now() {
    return performance.now() / 1000 - this.offset;
  }

  rate(key) {
    const found = this.rates.get(key);
    return found && this.now() - found.at < 3 ? found : { bytes: 0, connections: 0 };
  }

  lines() {
    return Object.entries(this.picture.lines || {}).map(([key, line]) => ({ key, ...line }));
  }

  entries(section) {
    return Object.entries(this.picture[section] || {});
  }
}

// "network:shop verdict:refused db": words with a colon name a field, the others are looked for in names.
export function parseFilter(text) {
  return text.trim().split(/\s+/).filter(Boolean).map((word) => {
    const [name, ...rest] = word.split(":");
    const value = rest.join(":");
    return FIELDS[name] && value ? { field: FIELDS[name], value } : { value: word };
  });
}

export function fits(line, words) {
  return words.every(({ field, value }) =>
    field
      ? String(line[field]) === value
      : [line.source, line.destination, line.network].some((name) => name.includes(value)));
}

const UNITS = ["", "k", "M", "G", "T", "P"];

export function amount(number, unit) {
  let value = number;
  let step = 0;
  while (value >= 999.5 && step < UNITS.length - 1) {
    value /= 1000;
    step += 1;
  }
  const digits = value < 9.95 && value % 1 ? 1 : 0;
  return `${value.toFixed(digits)} ${UNITS[step]}${unit}`;
}

export function age(seconds) {
  const whole = Math.max(Math.round(seconds), 0);
  if (whole < 100) return `${whole}s`;
  if (whole < 6000) return `${Math.round(whole / 60)}m`;
  return whole < 172800 ? `${Math.round(whole / 3600)}h` : `${Math.round(whole / 86400)}d`;
}

export function service(line) {
  return line.port ? `${line.protocol} ${line.port}` : line.protocol;
}

export function named(name) {
  return name || "?";
}
