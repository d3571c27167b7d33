// SPDX-License-Identifier: Apache-2.0
// What is asked of the host. Nothing here changes anything there.

export async function ask(path, words = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(words)}`, { credentials: "same-origin" });
  if (answer.status === 200) return answer.json();
  if (answer.status === 422 || answer.status === 400) throw new Error((await answer.json()).error);
  throw new Error((await answer.text()).trim());
}

// The token stands behind the # of the address once, which no server is sent; it is not left there.
export async function enter() {
  const found = new URLSearchParams(location.hash.slice(1));
  const token = found.get("token");
  if (!token) return;
  found.delete("token");
  history.replaceState(null, "", `#${found}`);
  await fetch("/session", { headers: { Authorization: `Bearer ${token}` }, credentials: "same-origin" });
}

// Calls `heard` with the picture and with each change, `said` with "live", "lost" or "closed". A browser connects again
// by itself where the connection was lost, but not where it was refused.
export function watch(heard, said) {
  let source;
  let again;
  const open = () => {
    source = new EventSource("/events");
    source.addEventListener("open", () => said("live"));
    for (const kind of ["picture", "change"]) {
      source.addEventListener(kind, (event) => heard(kind, JSON.parse(event.data)));
    }
    source.addEventListener("error", async () => {
      said("lost");
      if (source.readyState !== EventSource.CLOSED) return;
      const status = await fetch("/meanings", { credentials: "same-origin" }).then((a) => a.status, () => 0);
      if (status === 401) said("closed");
      else again = setTimeout(open, 1000);
    });
  };
  open();
  return () => {
    clearTimeout(again);
    source.close();
  };
}
