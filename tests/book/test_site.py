import textwrap

import pytest
import yaml

from normlib.book.site import Site
from normlib.errors import NormlibError
from normlib.lab.code.provenance import checkout


def write(folder, text):
    (folder / "_config.yml").write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


COMPLETE = """
    title: Notes
    author: Me
    repository:
      url: https://github.com/owner/name.git
      branch: release/2
    html:
      baseurl: https://notes.example/book
"""


def test_every_address_derives_from_the_configuration(tmp_path):
    site = Site.read(write(tmp_path, COMPLETE))
    assert (site.title, site.author, site.branch) == ("Notes", "Me", "release/2")
    assert site.repository == "https://github.com/owner/name"
    assert site.page_url("chapters/1-origins") == "https://notes.example/book/chapters/1-origins.html"
    assert site.code_url("normlib/a b.py", "abc") == "https://github.com/owner/name/blob/abc/normlib/a%20b.py"
    assert site.code_url("a.py", "abc", (3, 9)).endswith("/blob/abc/a.py#L3-L9")
    assert (
        site.colab_url("chapters/1.ipynb", "abc") == "https://colab.research.google.com/github/owner/name/blob/abc/chapters/1.ipynb"
    )
    assert site.raw_url("a.png", "abc") == "https://raw.githubusercontent.com/owner/name/abc/a.png"
    assert site.install_requirement("v1") == "normlib @ git+https://github.com/owner/name@v1"


def test_base_url_and_branch_have_defaults(tmp_path):
    site = Site.read(write(tmp_path, "title: t\nauthor: a\nrepository: {url: https://github.com/owner/name/}\n"))
    assert (site.base_url, site.branch) == ("https://owner.github.io/name/", "main")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("title: t\nrepository: {url: https://github.com/o/n}", "author"),
        ("title: t\nauthor: a", "repository.url"),
        ("title: t\nauthor: a\nrepository: text", "repository"),
        ("title: t\nauthor: a\nhtml:\nrepository: {url: https://github.com/o/n}", "html"),
        ("title: t\nauthor: a\nrepository: {url: https://gitlab.com/o/n}", "gitlab.com"),
        ("title: [", "not valid YAML"),
        ("- a", "list"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path, text, named):
    with pytest.raises(NormlibError, match=named):
        Site.read(write(tmp_path, text))


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(NormlibError, match=r"_config\.yml"):
        Site.read(tmp_path)


def test_an_installed_package_reads_its_own_copy(tmp_path, monkeypatch):
    monkeypatch.setattr("normlib.book.site.checkout", lambda: None)
    monkeypatch.setattr("normlib.book.site.PACKAGED", write(tmp_path, COMPLETE))
    assert Site.read().title == "Notes"


@pytest.mark.skipif(checkout() is None, reason="needs the repository")
def test_this_book_is_read():
    config = yaml.safe_load((checkout() / "_config.yml").read_text(encoding="utf-8"))
    site = Site.read()
    assert site.repository == config["repository"]["url"]
    assert site.base_url == config["html"]["baseurl"]
