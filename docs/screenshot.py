"""Take the README's picture from the built book: `python docs/screenshot.py` after `make book`, with Chromium installed."""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "_build" / "html" / "chapters" / "1-origins.html"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def main() -> None:
    """Write `docs/page.png`: the first figure of the first chapter with its caption and verdicts."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or not PAGE.is_file():
        raise SystemExit("this needs Chromium and a built book: install chromium, then run make book")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 940}, device_scale_factor=1.5)
        page.goto(PAGE.as_uri())
        page.wait_for_load_state("networkidle")
        page.evaluate("document.querySelector('figure.study').scrollIntoView({block: 'center'})")
        page.wait_for_timeout(500)
        page.screenshot(path=str(ROOT / "docs" / "page.png"))
        browser.close()


if __name__ == "__main__":
    main()
