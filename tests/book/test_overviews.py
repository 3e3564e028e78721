"""The ledger, the scoreboard and the page of figures: nothing is missing, every link leads somewhere, the filter filters."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from normlib.studies import STUDIES, get_study

pytestmark = pytest.mark.slow
PAGES = ("claims", "figures", "index")
CLAIMS = [claim for study in STUDIES for claim in get_study(study).claims]
VISIBLE = "[...document.querySelectorAll('.claim')].filter(e => e.offsetParent).map(e => e.id)"


class Page(HTMLParser):
    """The ids, links and articles of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.claims: list[dict[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.update([given["id"]] if "id" in given else [])
        self.links += [given[name] for name in ("href", "src") if name in given and tag in ("a", "img")]
        if tag == "article" and given.get("class") == "claim":
            self.claims.append(given)


@pytest.fixture(scope="module")
def read(site: Path) -> dict[str, Page]:
    return {path.stem: Page(path) for path in (site / "chapters").glob("*.html")}


def test_every_claim_of_every_study_stands_in_the_ledger_once(read: dict[str, Page]) -> None:
    ids = read["claims"].ids
    assert CLAIMS and all(ids[claim.anchor] == 1 for claim in CLAIMS)
    assert sorted(entry["id"] for entry in read["claims"].claims) == sorted(claim.anchor for claim in CLAIMS)
    assert all(f"#{claim.anchor}" in read["claims"].links for claim in CLAIMS), "each has its permalink"
    assert max(ids.values()) == 1


def test_claims_are_sorted_by_chapter_and_source_and_lie_where_their_figure_is(read: dict[str, Page]) -> None:
    order = [(entry["data-chapter"], entry["data-source"]) for entry in read["claims"].claims]
    runs = [pair for number, pair in enumerate(order) if not number or pair != order[number - 1]]
    assert len(runs) == len(set(runs)), "a source stands in one stretch of its chapter"
    for entry, claim in ((entry, claim) for entry in read["claims"].claims for claim in CLAIMS if claim.anchor == entry["id"]):
        figure = "fig-" + re.sub(r"[._]", "-", claim.study)
        assert figure in read[entry["data-chapter"]].ids and entry["data-source"] == claim.by


def test_every_study_has_its_picture_number_and_address_on_the_page_of_figures(site: Path, read: dict[str, Page]) -> None:
    html = (site / "chapters" / "figures.html").read_text(encoding="utf-8")
    entries = dict(re.findall(r'<article class="figure-entry study" id="([\w-]+)">(.*?)</article>', html, re.DOTALL))
    assert entries.keys() == {"fig-" + re.sub(r"[._]", "-", study) for study in STUDIES}
    for study in STUDIES:
        anchor = "fig-" + re.sub(r"[._]", "-", study)
        where = re.search(rf'href="([\w-]+)\.html#{anchor}"', entries[anchor])
        assert where and read[where[1]].ids[anchor] == 1
        chapter = (site / "chapters" / f"{where[1]}.html").read_text(encoding="utf-8")
        figure = re.search(rf'<figure[^>]* id="{anchor}">(.*?)</figure>', chapter, re.DOTALL)
        number = re.search(r"<h3.*?(Fig\. \d+)", entries[anchor], re.DOTALL)
        assert figure and number and f'"caption-number">{number[1]} </span>' in figure[1]
        images = re.findall(r'<img alt="([^"]{20,})"[^>]*src="([^"]+)"', entries[anchor])
        assert len(images) == 2 and all(f'src="{source}"' in figure[1] for _, source in images), "the drawing of the chapter"
        assert f"normlib run {study} --preset" in re.sub(r"<[^>]+>", "", entries[anchor])


def test_links_lead_to_pages_files_and_places_that_exist(site: Path, read: dict[str, Page]) -> None:
    known = {(site / "chapters" / f"{name}.html").resolve(): page for name, page in read.items()}
    for name in PAGES:
        for link in read[name].links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (site / "chapters" / (unquote(parts.path) or f"{name}.html")).resolve()
            assert target.is_file(), (name, link)
            if parts.fragment and target in known and not parts.fragment.startswith("_"):
                assert parts.fragment in known[target].ids, (name, link)


def test_the_scoreboard_counts_what_its_links_lead_to(site: Path, read: dict[str, Page]) -> None:
    html = (site / "chapters" / "index.html").read_text(encoding="utf-8")
    counted = re.findall(r'<a href="claims\.html(\?[^"]*)?" aria-label="(\d+) [^"]*">(\d+)</a>', html)
    assert len(counted) > 10
    for query, spoken, number in counted:
        asked = parse_qs(query.replace("&amp;", "&").removeprefix("?"))
        found = [e for e in read["claims"].claims if all(e[f"data-{name}"] in values for name, values in asked.items())]
        assert int(number) == int(spoken) == len(found), query


@pytest.fixture
def ledger(browser: Any, address: str) -> Any:
    page = browser.new_page()
    yield page, address + "chapters/claims.html"
    page.close()


@pytest.mark.browser
def test_the_filter_narrows_the_list_says_so_and_stands_in_the_address(ledger: Any, read: dict[str, Page]) -> None:
    page, url = ledger
    entries = read["claims"].claims
    page.goto(url)
    assert len(page.evaluate(VISIBLE)) == len(entries)
    verdict, source = entries[0]["data-verdict"], entries[0]["data-source"]
    of_verdict = [e["id"] for e in entries if e["data-verdict"] == verdict]
    page.locator(f'.claim-filter input[value="{verdict}"]').focus()
    page.keyboard.press("Space")
    assert page.evaluate(VISIBLE) == of_verdict and 0 < len(of_verdict) < len(entries)
    page.select_option('select[name="source"]', source)
    both = [e["id"] for e in entries if (e["data-verdict"], e["data-source"]) == (verdict, source)]
    assert page.evaluate(VISIBLE) == both
    status = page.locator(".claim-count[role=status]")
    assert f"{len(both)} of {len(entries)} claims: {len(both)} {verdict}." == status.text_content()
    page.fill('.claim-filter input[name="q"]', both[0].removeprefix("claim-").split("-")[0].upper())
    narrowed, shared = page.evaluate(VISIBLE), page.url
    assert narrowed and set(narrowed) <= set(both)
    page.goto(url)
    page.goto(shared)
    assert page.evaluate(VISIBLE) == narrowed, "the address brings the view back"
    page.fill('.claim-filter input[name="q"]', "no such words")
    assert page.evaluate(VISIBLE) == [] and status.text_content() == f"0 of {len(entries)} claims."
    assert page.evaluate("[...document.querySelectorAll('.claim-group')].every(g => !g.offsetParent)")
    page.click('.claim-filter button[type="reset"]')
    page.wait_for_function("!location.search")
    assert len(page.evaluate(VISIBLE)) == len(entries)


@pytest.mark.browser
def test_a_linked_claim_shows_even_where_the_filter_hides_it(ledger: Any, read: dict[str, Page]) -> None:
    page, url = ledger
    entries = read["claims"].claims
    verdict = entries[0]["data-verdict"]
    hidden = next(e["id"] for e in reversed(entries) if e["data-verdict"] != verdict)
    page.goto(f"{url}?verdict={verdict}#{hidden}")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)
    shown = page.evaluate(VISIBLE)
    assert set(shown) == {hidden, *(e["id"] for e in entries if e["data-verdict"] == verdict)}
    top = page.evaluate(f"document.getElementById('{hidden}').getBoundingClientRect().top")
    assert 0 <= top < page.viewport_size["height"]
    assert "as well" in page.locator(".claim-count").text_content()
    page.select_option('select[name="source"]', entries[0]["data-source"])
    assert hidden not in page.evaluate(VISIBLE) and "#" not in page.url, "a new choice lets go of the link"


@pytest.mark.browser
def test_without_scripts_and_on_paper_all_claims_are_there(browser: Any, address: str, ledger: Any, read: dict[str, Page]) -> None:
    page, url = ledger
    total = len(read["claims"].claims)
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(url)
    assert plain.locator(".claim:visible").count() == total and not plain.locator(".claim-filter").is_visible()
    context.close()
    page.goto(f"{url}?q=no+such+words")
    assert page.evaluate(VISIBLE) == []
    page.emulate_media(media="print")
    assert len(page.evaluate(VISIBLE)) == total and not page.locator(".claim-filter").is_visible()


@pytest.mark.browser
def test_a_thumbnail_is_seen_in_either_theme(browser: Any, address: str) -> None:
    for theme in ("light", "dark"):
        context = browser.new_context(color_scheme=theme, viewport={"width": 390, "height": 800})
        page = context.new_page()
        page.goto(address + "chapters/figures.html")
        for picture in page.locator(".figure-entry .themed").all()[:3]:
            picture.scroll_into_view_if_needed()
            page.wait_for_timeout(200)
            seen = picture.evaluate(
                "b => [...b.querySelectorAll('img')].filter(i => i.offsetParent && i.naturalWidth > 0).map(i => i.className)"
            )
            assert len(seen) == 1 and f"only-{theme}" in seen[0]
        context.close()
