"""The Sphinx extension of the book: fresh outputs, page furniture, vendored mathematics, records beside the pages."""

from __future__ import annotations

import os
import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from normlib.book.display import IN_BOOK
from normlib.book.pages import reference_style, shown
from normlib.book.pages.freshness import cache_folder, page_digest
from normlib.book.pages.furniture import closing, opening
from normlib.book.pages.links import RECORDS
from normlib.book.pages.markup import Article, Heading, depart_article, depart_heading, visit_article, visit_heading
from normlib.lab.records import Store

MATHJAX_PARTS = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions")
MENDED = {
    '<div role="list" class="citation-list">': '<div class="citation-list">',
    ' role="doc-biblioentry"': "",
}
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    reference_style.register()
    app.add_config_value("normlib_cache", "_build/cache", "env")
    app.connect("config-inited", _vendor_static_files)
    app.add_node(Article, html=(visit_article, depart_article))
    app.add_node(Heading, html=(visit_heading, depart_heading))
    app.connect("env-get-outdated", _outdated_pages)
    app.connect("env-get-outdated", shown.reread_after_removal)
    app.connect("env-before-read-docs", shown.read_overviews_last)
    app.connect("env-purge-doc", shown.forget)
    app.connect("source-read", _prepare_page)
    app.connect("doctree-resolved", _check_alt_texts)
    app.connect("html-page-context", _mend_for_screen_readers)
    app.connect("html-page-context", _add_filter)
    app.connect("build-finished", _copy_records)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}


def _vendor_static_files(app: Sphinx, config: Any) -> None:
    """Put MathJax, from an installed package, and the book's own style among the static files: nothing comes from other hosts."""
    os.environ[IN_BOOK] = "1"
    vendor = Path(app.srcdir) / "_build" / "vendor"
    source = Path(str(resources.files("mathjax"))) / "static" / "mathjax"
    for part in MATHJAX_PARTS:
        origin, target = source / "es5" / part, vendor / "mathjax" / part
        if origin.is_dir():
            shutil.copytree(origin, target, dirs_exist_ok=True)
        elif not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, target)
    config.html_static_path = [*config.html_static_path, str(vendor), str(Path(__file__).parent / "static")]
    config.mathjax_path = "mathjax/tex-chtml.js"
    config.html_css_files = [*config.html_css_files, "book.css"]


def _digests(app: Sphinx) -> dict[str, str | None]:
    """Digest every page once per build."""
    if not hasattr(app, "normlib_digests"):
        found = {}
        for docname in app.env.found_docs:
            path = Path(app.env.doc2path(docname))
            found[docname] = page_digest(path.read_text(encoding="utf-8")) if path.suffix == ".md" else None
        app.normlib_digests = found  # type: ignore[attr-defined]
    return app.normlib_digests  # type: ignore[attr-defined]


def _outdated_pages(app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Have pages read anew whose library code or records have changed since the last build."""
    before = getattr(env, "normlib_digests", {})
    now = _digests(app)
    outdated = [name for name in now if name in before and before[name] != now[name]]
    env.normlib_digests = now
    return outdated


def _prepare_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give a page its folder of outputs; give a chapter its opening and closing furniture."""
    match = FRONT_MATTER.match(source[0])
    if not match:
        return
    front, body = match[1], source[0][match.end() :]
    digest = _digests(app).get(docname)
    if digest:
        folder = cache_folder(Path(app.srcdir) / app.config.normlib_cache, docname, digest)
        if "\nmystnb:" in f"\n{front}":
            raise ExtensionError(f"{docname}: the front matter has a key 'mystnb'; the book sets it by itself, remove it")
        front += f"\nmystnb:\n  execution_cache_path: {folder}"
    if re.search(r"^chapter:", front, re.MULTILINE):
        body = opening(body, docname) + closing(docname, body)
    source[0] = f"---\n{front}\n---\n{body}"


def _check_alt_texts(app: Sphinx, doctree: Any, docname: str) -> None:
    """Refuse images without an alt text, or with their own path for one."""
    from docutils import nodes

    for image in doctree.findall(nodes.image):
        alt = image.get("alt", "")
        if not alt.strip() or re.fullmatch(r"\S+\.(png|svg|jpe?g|gif)", alt):
            raise ExtensionError(f"{docname}: the image {image.get('uri')} has no alt text; say what is drawn")


def _mend_for_screen_readers(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Take the roles off reference lists, which docutils calls lists without list items."""
    for old, new in MENDED.items() if "body" in context else ():
        context["body"] = context["body"].replace(old, new)


def _add_filter(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Load the script of the ledger on the page that has one."""
    if 'class="claim-filter"' in context.get("body", ""):
        app.add_js_file("ledger.js", loading_method="defer")


def _copy_records(app: Sphinx, exception: Exception | None) -> None:
    """Lay the records beside the pages, so that each figure can link to its own."""
    if exception is None and app.builder.format == "html":
        for path in Store.default().files():
            target = Path(app.outdir) / RECORDS / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
