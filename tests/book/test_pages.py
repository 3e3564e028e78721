"""The whole book as its readers meet it, in a real browser where there is one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

EXTERNAL = re.compile(r"""<(?:script|img|iframe|link)[^>]*\s(?:src|href)=["'](?:https?:)?//""")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pages_load_nothing_from_other_hosts(site: Path, pages: list[str]) -> None:
    for page in pages:
        lines = [line for line in (site / page).read_text().splitlines() if EXTERNAL.search(line) and 'rel="canonical"' not in line]
        assert not lines, (page, lines[:3])


@pytest.mark.slow
def test_figures_have_alt_texts_captions_and_links_that_lead_somewhere(site: Path, pages: list[str]) -> None:
    figures = {page: re.findall(r'<figure class="study.*?</figure>', (site / page).read_text(), re.DOTALL) for page in pages}
    assert sum(map(len, figures.values())) >= 10
    for page, found in figures.items():
        for figure in found:
            alts = re.findall(r'<img[^>]*alt="([^"]*)"', figure)
            assert len(alts) == 2 and all(20 < len(alt) <= 400 for alt in alts), page
            assert 'class="caption-text"' in figure, page
            record = re.search(r'href="([^"]+)">record<', figure)
            assert record and (site / page).parent.joinpath(record[1]).resolve().is_file(), page


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(900)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_pages_are_sound_in_a_browser(browser: Any, address: str, pages: list[str], width: int, theme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
    for path in pages:
        page, faults = context.new_page(), []
        page.on("console", lambda message, faults=faults: faults.append(message.text) if message.type == "error" else None)
        page.on("response", lambda answer, faults=faults: faults.append(answer.url) if answer.status >= 400 else None)
        page.on(
            "request",
            lambda asked, faults=faults: faults.append(asked.url) if not asked.url.startswith((address, "data:")) else None,
        )
        page.goto(address + path)
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(300)
        assert faults == [], path
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, path
        assert page.evaluate("document.querySelectorAll('mjx-merror, .MathJax_Error').length") == 0, path
        raw = page.evaluate("[...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).length")
        assert raw == 0, path
        shown = page.evaluate(
            "[...document.querySelectorAll('figure.study')].filter(f => f.offsetParent)"
            ".map(f => [...f.querySelectorAll('img')].filter(i => i.offsetParent && i.naturalWidth > 0).length)"
        )
        assert all(count == 1 for count in shown), (path, shown)
        page.close()
    context.close()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(900)  # contrasts of the ledger alone take a minute
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_accessibility_finding(browser: Any, address: str, pages: list[str], theme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=theme)
    for path in pages:
        page = context.new_page()
        page.goto(address + path)
        page.wait_for_load_state("networkidle")
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in found if v["impact"] in ("serious", "critical")]
        assert serious == [], path
        page.close()
    context.close()
