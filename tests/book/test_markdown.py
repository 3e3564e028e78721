import textwrap

import pytest

from normlib.book.notebooks.blocks import MystError
from normlib.book.notebooks.citations import Bibliography
from normlib.book.notebooks.formulas import display
from normlib.book.notebooks.inline import Inline
from normlib.book.notebooks.labels import Book
from normlib.book.notebooks.leftovers import leftovers
from normlib.book.notebooks.markdown import Converter
from normlib.book.notebooks.myst import parse
from normlib.book.site import Site
from normlib.errors import NormlibError

SITE = Site("https://github.com/owner/name", title="Notes", author="Me")
PAGE = "https://owner.github.io/name/chapters/a.html"
WORKS = r"""
@inproceedings{lecun1998,
  author = {LeCun, Yann and Bottou, L{\'e}on and Orr, Genevieve B. and M{\"u}ller, Klaus-Robert},
  title = {Efficient {BackProp}}, year = 1998, doi = {10.1007/3-540-49430-8_2}}
@inproceedings{glorot2010, author = {Glorot, Xavier and Bengio, Yoshua}, title = {Difficulty}, year = 2010, url = {https://e.org/a}}
@article{ioffe2015, author = {Ioffe, Sergey and Szegedy, Christian}, title = {BN}, year = 2015, eprint = {1502.03167}}
@article{muller, author = {M{\"u}ller, K.}, title = {T}, year = 2001, journal = {arXiv preprint arXiv:1234.56789}}
@misc{team, author = {{The Team}}, title = {T}, year = 2012}
@article{many, author = {van der Maaten, Laurens and others}, title = {T}, year = 2008, doi = {https://doi.org/10.1/x}}
"""


@pytest.fixture(scope="module")
def bibliography(tmp_path_factory):
    path = tmp_path_factory.mktemp("bib") / "references.bib"
    path.write_text(WORKS, encoding="utf-8")
    return Bibliography.read(path)


@pytest.fixture
def convert(tmp_path, bibliography):
    """Convert the text of a page named a.md, beside a page named b.md."""

    def converted(text, other="# Other page\n\n(else)=\n## Elsewhere\n"):
        folder = tmp_path / "chapters"
        folder.mkdir(exist_ok=True)
        (tmp_path / "plot.py").touch()
        (folder / "b.md").write_text(other, encoding="utf-8")
        (folder / "a.md").write_text(textwrap.dedent(text), encoding="utf-8")
        book = Book.read(folder, SITE, bibliography, ref="v1")
        return Converter(Inline(book, folder / "a.md")).convert(book.pages["chapters/a"])

    return converted


@pytest.mark.parametrize(
    ("key", "textual", "parenthetical"),
    [
        ("lecun1998", "[LeCun et al. (1998)](https://doi.org/10.1007/3-540-49430-8_2)", None),
        ("glorot2010", "[Glorot and Bengio (2010)](https://e.org/a)", "([Glorot and Bengio, 2010](https://e.org/a))"),
        ("ioffe2015", "[Ioffe and Szegedy (2015)](https://arxiv.org/abs/1502.03167)", None),
        ("muller", "[Müller (2001)](https://arxiv.org/abs/1234.56789)", None),
        ("team", "The Team (2012)", "(The Team, 2012)"),
        ("many", "[van der Maaten et al. (2008)](https://doi.org/10.1/x)", None),
    ],
)
def test_citations_name_authors_and_link_the_work(convert, key, textual, parenthetical):
    assert convert(f"By {{cite:t}}`{key}`.") == f"By {textual}."
    if parenthetical:
        assert convert(f"As known {{cite:p}}`{key}`.") == f"As known {parenthetical}."


def test_several_works_in_one_citation(convert):
    assert convert("{cite:p}`team, muller`") == "(The Team, 2012; [Müller, 2001](https://arxiv.org/abs/1234.56789))"
    assert convert("{cite:t}`team,team,team`") == "The Team (2012), The Team (2012) and The Team (2012)"


def test_the_list_of_works_is_sorted_and_decoded(bibliography):
    lines = bibliography.listed(["team", "lecun1998", "team"]).splitlines()
    assert lines[0].startswith("- Yann LeCun, Léon Bottou, Genevieve B. Orr and Klaus-Robert Müller (1998). [Efficient BackProp](")
    assert lines[1:] == ["- The Team (2012). T."]


UNTOUCHED = [
    "Code `{note}` and ``{cite:t}`x` `` and `[](#nothing)`.",
    "Math $\\mathbb{E}[x]_{i}$ and $a `b` {c}$, and $5 or {0, 1}.",
    "```python\n{cite:t}`x`\n:::{note}\n(a)=\n% kept\n```",
    "~~~\n```{note}\n~~~",
    "Text\n\n    {cite:t}`x` is code by its indentation",
    "| a | b |\n|---|---|\n| 1 | $x$ |",
    "- one\n- two\n  - three\n\n    still three",
    "<https://e.org> and https://e.org, an \\{escaped}`brace`, [brackets] and [ ] a task",
    "A line  \nbreak, *emphasis*, **strong**, <b>HTML</b>.",
    "[link](https://e.org/a_(b)) and ![alt](https://e.org/a.png)",
]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_plain_markdown_stays(convert, text):
    assert convert(text) == text


CONVERTED = {
    "target and comment": ("(a)=\n% gone\n<!-- gone\n-->\nText", "Text"),
    "heading": ("### By {cite:t}`team`", "### By The Team (2012)"),
    "inline comment": ("A<!-- x --> b", "A b"),
    "roles": ("{term}`ghosts <ghost>` {abbr}`LN (layer norm)` {math}`x^2` {kbd}`Ctrl` {bdg-info}`new`",
              "ghosts LN (layer norm) $x^2$ `Ctrl` **new**"),
    "footnote": ("A[^x] b[^y].\n\n[^y]: Why.\n\n[^x]: Ex.",
                 "A<sup>1</sup> b<sup>2</sup>.\n\n<sup>2</sup> Why.\n\n<sup>1</sup> Ex."),
    "page": ("[the other](b.md) and [](b.md) and {doc}`b`", "[the other](B) and [Other page](B) and [Other page](B)"),
    "page anchor": ("[x](b.md#else) and [](#else) and {ref}`else`", "[x](B#else) and [Elsewhere](B#else) and [Elsewhere](B#else)"),
    "code in the text of a link": ("[`a]` $[$ [n]](b.md)", "[`a]` $[$ [n]](B)"),
    "file": ("[the plot](../plot.py)", "[the plot](https://github.com/owner/name/blob/v1/plot.py)"),
    "image": ("![alt](../plot.py)", "![alt](https://raw.githubusercontent.com/owner/name/v1/plot.py)"),
    "note": ("```{note}\nBody {cite:t}`team`.\n\n- item\n```", "> **Note**\n>\n> Body The Team (2012).\n>\n> - item"),
    "colons": (":::{seealso} First\nsecond\n:::", "> **See also**\n>\n> First\n>\n> second"),
    "admonition": (":::{admonition} A $t$\n:class: tip\n\nBody\n:::", "> **A $t$**\n>\n> Body"),
    "nested": ("::::{dropdown} Out\n:::{tip}\nIn\n:::\n::::", "> **Out**\n>\n> > **Tip**\n> >\n> > In"),
    "in a list": ("1. one\n\n   ```{note}\n   Body\n   ```\n2. two", "1. one\n\n   > **Note**\n   >\n   > Body\n\n2. two"),
    "quote": ("> As {cite:t}`team`\n> said", "> As The Team (2012)\n> said"),
    "tabs": ("::::{tab-set}\n:::{tab-item} One\nA\n:::\n:::{tab-item} Two\nB\n:::\n::::", "**One**\n\nA\n\n**Two**\n\nB"),
    "margin": ("```{margin}\nAside\n```", "> Aside"),
    "glossary": ("```{glossary}\nGhost\n: A part\n  of it\nOther\n: B\n```", "**Ghost**: A part of it\n\n**Other**: B"),
    "figure": ("```{figure} https://e.org/a.png\n:alt: Drawn\n\nCaption $x$\n```", "![Drawn](https://e.org/a.png)\n\nCaption $x$"),
    "table": (":::{table} Title\n\n| a |\n|---|\n:::", "**Title**\n\n| a |\n|---|"),
    "code block": ("````{code-block} python\n:linenos:\nx = `1`\n````", "```python\nx = `1`\n```"),
    "theorem": (":::{prf:theorem} Name\n:label: t\nBody\n:::\nBy {prf:ref}`t`",
                "> **Theorem 1 (Name)**\n>\n> Body\n\nBy [theorem 1](A#t)"),
    "proof": (":::{prf:proof}\nBody\n:::", "> **Proof**\n>\n> Body"),
    "bibliography and its heading": ("Text\n\n## References\n\n```{bibliography}\n:filter: x\n```", "Text"),
    "formula in a quote": ("> $$\n> a\n> b\n> $$", "> $$a b$$"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
def test_constructs(convert, name):
    text, expected = CONVERTED[name]
    result = convert(text)
    assert result == expected.replace("(A#", f"({PAGE}#").replace("(B", f"({PAGE.replace('a.html', 'b.html')}")
    assert not leftovers(result)


def test_exercises_are_numbered_and_their_solutions_fold(convert):
    result = convert("""
        ```{exercise} Batch of one
        :label: ex-one
        What is $\\hat x$?
        ```

        ````{solution} ex-one
        It is 0:

        ```python
        assert True
        ```
        ````

        ```{exercise}
        Another.
        ```

        ```{solution-start} ex-one
        ```
        Again.

        ```{solution-end}
        ```

        See {numref}`Exercise %s <ex-one>`, {ref}`ex-one`.
        """)
    assert "> **Exercise 1 (Batch of one)**\n>\n> What is $\\hat x$?" in result
    assert "<details>\n<summary>Solution to exercise 1</summary>\n\nIt is 0:\n\n```python\nassert True\n```\n\n</details>" in result
    assert "> **Exercise 2**\n>\n> Another." in result
    assert "**Solution to exercise 1**\n\nAgain." in result
    assert result.endswith(f"See [exercise 1]({PAGE}#ex-one), [exercise 1]({PAGE}#ex-one).")


def test_figures_of_studies_are_said_in_words(convert):
    show = '```{code-cell} python\nshow("lecun1998.bias_rate")\n```\n'
    url = "https://owner.github.io/name/chapters/b.html#fig-lecun1998-bias-rate"
    for reference in (
        "[](#fig-lecun1998-bias-rate)",
        "{numref}`fig-lecun1998-bias-rate`",
        "{numref}`Figure %s <fig-lecun1998-bias-rate>`",
    ):
        result = convert(f"{reference} tells; see {reference}. {reference} too.", other=f"# B\n\n{show}")
        assert result == (
            f"[The figure of lecun1998.bias_rate]({url}) tells; see [the figure of lecun1998.bias_rate]({url}). "
            f"[The figure of lecun1998.bias_rate]({url}) too."
        )
    assert convert("{numref}`this plot <fig-lecun1998-bias-rate>`", other=show) == f"[this plot]({url})"


def test_a_claim_is_referred_to_in_the_ledger(tmp_path, bibliography):
    (tmp_path / "claims.md").write_text("# Ledger\n", encoding="utf-8")
    (tmp_path / "a.md").write_text("See {ref}`claim-lecun1998-rates-bias`.", encoding="utf-8")
    book = Book.read(tmp_path, SITE, bibliography)
    result = Converter(Inline(book, tmp_path / "a.md")).convert(book.pages[f"{tmp_path.name}/a"])
    assert result.endswith("/claims.html#claim-lecun1998-rates-bias).")


def test_equations_are_numbered_and_referred_to(convert):
    result = convert("""
        $$
        x &= 1 \\\\
        y &= 2
        $$ (eq-first)

        ```{math}
        :label: eq-second
        z = 3 % a remark
        ```

        $$u = 4$$

        By {eq}`eq-second` and [](#eq-first).
        """)
    assert "$$\n\\begin{aligned}\nx &= 1 \\\\\ny &= 2\n\\end{aligned} \\tag{1}\n$$" in result
    assert "$$\nz = 3 \\tag{2}\n$$\n\n$$\nu = 4\n$$" in result
    assert f"By [(2)]({PAGE}#equation-eq-second) and [(1)]({PAGE}#equation-eq-first)." in result


@pytest.mark.parametrize(
    ("tex", "shown"),
    [
        ("\\begin{align*}\na &= b\n\\end{align*}", "\\begin{aligned}\na &= b\n\\end{aligned}"),
        ("\\begin{equation}\na = 50\\% \\label{x}\n\\end{equation}", "a = 50\\%"),
        ("\\begin{pmatrix} a \\\\ b \\end{pmatrix}", "\\begin{pmatrix} a \\\\ b \\end{pmatrix}"),
    ],
)
def test_environments(convert, tex, shown):
    assert display(tex) == f"$$\n{shown}\n$$"
    assert convert(tex) == f"$$\n{shown}\n$$"


ERRORS = {
    "directive": ("a\n\n```{raw} html\n```", 3, "directive {raw}"),
    "nested directive": ("::::{note}\n\n:::{grid}\n:::\n::::", 3, "directive {grid}"),
    "cell in a directive": ("````{note}\n```{code-cell}\n```\n````", 2, "top level"),
    "directive in a line": ("- ```{note}", 1, "```{note}"),
    "role": ("a\nb {glue:text}`x`", 2, "role {glue:text}"),
    "role in a cell of a table": ("| a |\n|---|\n| {download}`x` |", 3, "role {download}"),
    "citation": ("a\n{cite:p}`team,ioffe2014`", 2, "did you mean 'ioffe2015'"),
    "label": ("{ref}`nothing`", 1, "'nothing'"),
    "label of a link": ("[](#nothing)", 1, "'nothing'"),
    "page": ("[x](c.md)", 1, "c.md"),
    "anchor of a page": ("[x](b.md#nothing)", 1, "'nothing'"),
    "file": ("[x](../nothing.py)", 1, "nothing.py"),
    "file outside": ("[x](../../..)", 1, "no file of the repository"),
    "alt": ("![](https://e.org/a.png)", 1, "alt text"),
    "alt of a figure": ("```{figure} https://e.org/a.png\n```", 1, "alt text"),
    "title": ("```{admonition}\na\n```", 1, "no title"),
    "substitution": ("a {{ b }}", 1, "substitution"),
    "attributes": ("[a](https://e.org){.class}", 1, "attributes"),
    "project link": ("<project:#a>", 1, "<project:#a>"),
    "reference link": ("[a]: https://e.org", 1, "[a]:"),
    "definition list": ("Term\n: Definition", 2, "':'"),
    "relative HTML": ('<img alt="x" src="a.png">', 1, "relative"),
    "open fence": ("a\n\n```{note}\nb", 3, "not closed"),
    "open formula": ("$$\na\n\nb\n$$", 1, "not closed"),
    "open comment": ("<!--\na", 1, "not closed"),
    "stray fence": ("a\n\n:::", 3, "':::'"),
    "empty formula": ("```{math}\n```", 1, "empty"),
    "environment": ("\\begin{multline}\na\n\\end{multline}", 1, "multline"),
    "label twice": ("(a)=\n# A\n\n(a)=\n## B", 4, "taken"),
    "label of nothing": ("a\n\n(b)=", 3, "nothing after"),
    "options": ("```{note}\n---\na: [\n---\n```", 2, "YAML"),
    "solution of nothing": ("```{solution} ex\n```", 1, "'ex'"),
    "reference without words": ("(a)=\nText {ref}`a`", 2, "give it a text"),
    "cell break": ("::::{note}\na\n\n+++\n::::", 4, "+++"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_file_line_and_construct(convert, name):
    text, line, construct = ERRORS[name]
    with pytest.raises(MystError) as caught:
        convert(text)
    assert f"a.md:{line}: " in str(caught.value)
    assert construct in str(caught.value)


@pytest.mark.parametrize(
    ("markdown", "found"),
    [
        ("{ref}`a`", 1),
        ("```{note}\n```", 1),
        (":::{note}\na\n:::", 2),
        ("(a)=\n", 1),
        ("> a {cite}`b` `{c}`", 1),
        ("[a](b.md) ![c](d.png)", 2),
        ("`{ref}` $:::$ [a](https://e.org)", 0),
        ("```\n{ref}`a`\n```", 0),
    ],
)
def test_the_last_look_sees_raw_markup(markdown, found):
    assert len(leftovers(markdown)) == found


def test_blocks_know_their_lines(tmp_path):
    blocks = parse(["a", "b", "", "# c", "```{note}", "", "d", "```", "$$e$$"], tmp_path, first=10)
    assert [(block.kind, block.line) for block in blocks] == [("text", 10), ("heading", 13), ("directive", 14), ("math", 18)]
    assert blocks[2].body_line == 16


def test_a_missing_or_damaged_bibliography_is_named(tmp_path):
    path = tmp_path / "references.bib"
    with pytest.raises(NormlibError, match="no bibliography"):
        Bibliography.read(path)
    path.write_text("@article{a, title = {", encoding="utf-8")
    with pytest.raises(NormlibError, match="not valid BibTeX"):
        Bibliography.read(path)
