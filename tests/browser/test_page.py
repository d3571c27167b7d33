# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: it shows what happens, says why, and runs nobody's script but its own."""

from __future__ import annotations

import os
import signal

from playwright.sync_api import Browser

from tests.browser.shop import HOSTILE, Shop, View, shot, viewed
from tests.net.hosts import PATIENCE
from tests.net.web import Page


def edge(source: str, verdict: str) -> str:
    """The drawing's edge from that member of shop."""
    return (
        f"cy.edges().filter(e => e.data('source') === 'shop\\t{source}' && e.data('verdict') === '{verdict}')"
    )


REFUSED = edge("cron", "refused")


def test_v9_a_container_that_starts_is_in_its_network_and_goes_with_it(shop: Shop, view: View) -> None:
    view.open()
    assert view.graph("cy.getElementById('shop\\tapp').data('parent')") == "network\tshop"
    places = view.graph("cy.nodes().map(node => [node.id(), node.position()])")
    shop.host.run("late", "--network shop")
    view.until("cy.getElementById('shop\\tlate').nonempty()")
    after = dict(view.graph("cy.nodes().map(node => [node.id(), node.position()])"))
    assert all(after[name] == place for name, place in places if not name.startswith("network\t"))
    shop.host.ctl("rm -f late")
    view.until("cy.getElementById('shop\\tlate').empty()")


def test_v9_a_refused_edge_is_dashed_counts_and_leads_to_the_line_that_allows_it(
    shop: Shop, view: View
) -> None:
    view.open()
    count = view.graph(f"{REFUSED}.data('label')")
    assert view.graph(f"{REFUSED}.style('line-style')") == "dashed" and count.startswith("✕ ")
    assert view.graph(f"{edge('app', 'allowed')}.style('line-style')") == "solid"
    shop.refuse(2)
    view.until(f"{REFUSED}.data('label') === '✕ {int(count[2:]) + 2}'")
    view.click_edge("shop\tcron", "shop\tdb", "refused")
    view.tab.locator("pre.yaml").wait_for(timeout=PATIENCE * 1000)
    shot(view, "why")
    panel = view.panel()
    assert (
        "cron → db tcp 5432" in panel
        and "DROP_IN" in panel
        and "policy db lets in" in panel
        and "cron is note=" in panel
    )
    assert "the packet programs say the same" in panel
    assert view.tab.locator("pre.yaml .added").inner_text().strip() == '- "cron:5432"  # added'


def test_v10_names_and_labels_are_text(shop: Shop, view: View) -> None:
    view.open()
    view.tab.evaluate("document.querySelectorAll('img').length === 0 || fail()")
    view.graph("cy.getElementById('shop\\tcron').emit('tap')")
    view.tab.get_by_text(f"note={HOSTILE}").wait_for(timeout=PATIENCE * 1000)
    view.tab.get_by_role("tab", name="Matrix").click()
    assert view.tab.locator("img").count() == 0 and view.tab.evaluate("window.hurt") is None


def test_no_inline_script_runs_on_it(shop: Shop, browser: Browser, page: Page) -> None:
    """Its policy is in force: what a name would have to get in is stopped, and said."""
    with viewed(browser, page) as view:
        view.open()
        view.tab.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'window.hurt = 1';"
            " document.body.append(s); document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=hurt=1>'); }"
        )
        view.tab.wait_for_timeout(200)
        assert view.tab.evaluate("window.hurt") is None
        stopped = [one for one in view.complaints if "Content Security Policy" in one]
        assert stopped
        view.complaints.clear()


def test_the_token_is_not_left_in_the_address_and_no_script_reads_the_cookie(view: View) -> None:
    view.open("&filter=verdict:refused&tab=Refused")
    assert "token" not in view.tab.url and "verdict%3Arefused" in view.tab.url
    assert view.tab.evaluate("document.cookie") == ""
    assert view.tab.locator("tbody tr").count() == 1
    view.tab.reload()
    view.live()
    assert view.tab.locator("tbody tr").count() == 1  # what a link says is kept


def test_tables_say_what_the_drawing_says_and_need_no_mouse(shop: Shop, view: View) -> None:
    view.open()
    rows = view.tab.locator("tbody tr")
    assert sorted(
        rows.evaluate_all("rows => rows.map(r => r.cells[0].innerText + r.cells[1].innerText)")
    ) == [
        "appdb",
        "crondb",
    ]
    view.tab.locator("tbody tr", has_text="cron").focus()
    view.tab.keyboard.press("Enter")
    view.tab.locator("pre.yaml").wait_for(timeout=PATIENCE * 1000)
    view.until(f"{REFUSED}.hasClass('picked')")
    view.tab.get_by_label("filter").fill("to:nobody")
    view.tab.get_by_text("Nothing was seen.").wait_for(timeout=PATIENCE * 1000)
    view.until("cy.edges().empty()")
    view.tab.get_by_role("tab", name="Policies").press("Enter")
    assert "role=db" in view.tab.locator("[role=tabpanel]").inner_text()


def test_v17_what_is_written_has_the_contrast_that_readers_need(browser: Browser, page: Page) -> None:
    for scheme in ("light", "dark"):
        with viewed(browser, page, scheme) as view:
            view.open()
            view.click_edge("shop\tcron", "shop\tdb", "refused")
            view.tab.locator("pre.yaml").wait_for(timeout=PATIENCE * 1000)
            assert view.tab.evaluate(CONTRAST) == [], scheme
            shot(view, scheme)


def test_v13_a_page_whose_server_is_killed_says_so_and_comes_back(shop: Shop, view: View) -> None:
    view.open()
    seen = view.tab.evaluate(
        "window.seen = []; new MutationObserver(() => window.seen.push("
        "document.querySelector('[role=status]').innerText)).observe("
        "document.querySelector('header'), {subtree: true, childList: true, characterData: true})"
    )
    assert seen is None
    before = view.page.children()
    os.kill(next(pid for pid, user in before.items() if user), signal.SIGKILL)
    view.tab.get_by_text("● live").wait_for(timeout=PATIENCE * 1000)
    view.becomes("window.seen.includes('○ not connected') && window.seen.at(-1) === '● live'")
    view.until(f"{REFUSED}.nonempty()")
    count = view.graph(f"{REFUSED}.data('label')")
    shop.refuse(1)
    view.until(f"{REFUSED}.data('label') === '✕ {int(count[2:]) + 1}'")
    view.complaints.clear()  # that the connection was lost


def test_without_the_token_it_shows_nothing_and_says_what_to_open(browser: Browser, page: Page) -> None:
    with viewed(browser, page) as view:
        view.tab.goto("http://127.0.0.1:8717/")
        view.tab.get_by_text("no session: open the address").wait_for(timeout=PATIENCE * 1000)
        assert view.graph("cy.nodes().length") == 0
        view.complaints.clear()  # that it was not let in
        view.foreign.clear()


def test_a_page_of_somebody_else_gets_nothing(shop: Shop, browser: Browser, page: Page) -> None:
    """Whose name comes to mean this host, and who asks from elsewhere with the session's cookie."""
    with viewed(browser, page) as view:
        view.open()
        answer = view.tab.context.new_page()
        found = answer.goto("http://127.0.0.1:8717/picture")  # by hand: the session's own
        assert found is not None and found.status == 200
        told = answer.evaluate(
            "fetch('http://localhost:8717/picture', {credentials: 'include'}).then(a => a.text(), e => 'refused')"
        )
        assert told == "refused"
        view.complaints.clear()


# The ratio of WCAG 2.1 for all text that is seen, against the ground that is behind it.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const found = parse(getComputedStyle(one).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const failed = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim()) continue;
    if (!element.checkVisibility() || element.closest('noscript, [disabled]')) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) failed.push(walker.currentNode.textContent);
  }
  return failed;
}"""
