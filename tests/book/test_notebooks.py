import shutil
import subprocess
import sys

import nbformat
import pytest
from markdown_it import MarkdownIt

from normlib.book.notebooks.blocks import MystError
from normlib.book.notebooks.export import check_all, export, main, write_all
from normlib.book.notebooks.leftovers import leftovers
from normlib.book.site import Site
from normlib.lab.code.provenance import checkout

ROOT = checkout()
CONFIG = """
title: Notes
author: Me
repository: {url: https://github.com/owner/name, branch: main}
"""
WORKS = r"""
@article{ioffe2015, author = {Ioffe, Sergey and Szegedy, Christian}, title = {Batch {Normalization}}, year = 2015,
  eprint = {1502.03167}}
@article{he2016,
  author = {He, K. and Zhang, X. and Ren, S. and Sun, J.}, title = {Residual Learning}, year = 2016,
  doi = {10.1109/CVPR.2016.90}}
"""
FRONT = """\
---
file_format: mystnb
kernelspec:
  name: python3
chapter: 2
colab: {gpu: true}
---
"""
CHAPTER = (
    FRONT
    + r"""
(batch-norm)=
# Batch normalization, for the $\ell_2$ of it

> **Claim.** {cite:t}`ioffe2015` blame the shift; the measurements do not. See {ref}`the origins <origins>`.

% a remark of the authors
The statistics of a batch $\mathcal{B}$ of $m$ values,

$$
\mu &= \frac{1}{m} \sum_i x_i \\
\sigma^2 &= \frac{1}{m} \sum_i (x_i - \mu)^2
$$ (eq-statistics)

enter {eq}`eq-statistics`[^biased]; deep networks {cite:p}`he2016,ioffe2015` need them. `{cite:t}` is a role.

[^biased]: The variance is *biased*.

```{code-cell} python
---
tags: [hide-input, raises-exception]
mystnb:
  figure:
    name: fig-two-lines
    caption: "Two lines: {not} a role"
  image:
    alt: two lines
---
x = {"a": 1}["a"]  # {cite}`nothing`

print(f"{{x}}")
```

{numref}`Figure %s <fig-two-lines>` shows it, [](#fig-ioffe2015-shift) measures it, [](#claim-ioffe2015-shift-less) judges it.

+++

## What it shows

::::{tab-set}
:::{tab-item} Recorded
The table of {doc}`1-origins`:

| norm | error |
|---|---:|
| {abbr}`BN (batch normalization)` | $1.0$ |
:::
:::{tab-item} Live
Nothing.
:::
::::

```{code-cell} python
:tags: [hide-output]
from normlib import show

show("ioffe2015.shift")
```

:::::{prf:theorem} Invariance
:label: thm-scale
$\mathrm{BN}(aWx) = \mathrm{BN}(Wx)$.
:::::

::::{admonition} For the reading group
:class: tip
1. Why {prf:ref}`thm-scale`?

   :::{note}
   With $\epsilon = 0$:
   $$
   a = b
   + c
   $$
   :::
2. See [the code](../normlib/layers.py) and ![the plot](../plot.png).
::::

```{exercise} Batch of one
:label: ex-one
What is $\hat x$ at $m = 1$?
```

````{solution} ex-one
:class: dropdown
Zero:
```python
assert (x - x.mean()).item() == 0
```
````

```{solution-start} ex-one
```
```{code-cell} python
print(0)
```
```{solution-end}
```

```{margin}
An aside.
```
```{glossary}
Ghost batch
: The values that share statistics.
```

## References

```{bibliography}
:filter: docname in docnames
```
"""
)
ORIGINS = FRONT.replace("colab: {gpu: true}\n", "") + "\n(origins)=\n# Origins\n\nText.\n\n```{code-cell} python\nprint(1)\n```\n"


@pytest.fixture
def root(tmp_path):
    """Write a book of two chapters, a ledger and a plain page."""
    chapters = tmp_path / "chapters"
    chapters.mkdir()
    (tmp_path / "normlib").mkdir()
    (tmp_path / "normlib" / "layers.py").touch()
    (tmp_path / "plot.png").touch()
    (tmp_path / "_config.yml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "references.bib").write_text(WORKS, encoding="utf-8")
    (chapters / "2-batch-norm.md").write_text(CHAPTER, encoding="utf-8")
    (chapters / "1-origins.md").write_text(ORIGINS, encoding="utf-8")
    (chapters / "claims.md").write_text("# Ledger\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def notebook(root):
    return exported(root)


def exported(root, name="2-batch-norm", ref=None):
    return export(root / "chapters" / f"{name}.md", Site.read(root), root / "references.bib", ref)


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def addresses(notebook):
    parser = MarkdownIt("commonmark").enable("table")
    for token in parser.parse(prose(notebook)):
        for child in token.children or []:
            if address := child.attrGet("href") or child.attrGet("src"):
                yield address


def test_the_notebook_is_valid_and_has_no_outputs(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 4
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_no_markup_is_left_and_links_are_absolute(notebook):
    assert leftovers(prose(notebook)) == []
    found = list(addresses(notebook))
    assert len(found) > 10
    assert all(address.startswith("https://") for address in found)
    for raw in (":::", "```{", "{ref}", "{numref}", ")=", "[^", "% a remark", "{bibliography}", "[]("):
        assert raw not in prose(notebook)


def test_the_prose_reads_as_meant(notebook):
    text = prose(notebook)
    page = "https://owner.github.io/name/chapters/2-batch-norm.html"
    assert text.startswith("# Batch normalization, for the $\\ell_2$ of it\n\nThis notebook is generated from [the page")
    assert text.count("# Batch normalization") == 1
    assert "[Ioffe and Szegedy (2015)](https://arxiv.org/abs/1502.03167) blame the shift" in text
    assert (
        "([He et al., 2016](https://doi.org/10.1109/CVPR.2016.90); [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167))"
        in text
    )
    assert "[the origins](https://owner.github.io/name/chapters/1-origins.html#origins)" in text
    assert "\\end{aligned} \\tag{1}\n$$" in text
    assert f"enter [(1)]({page}#equation-eq-statistics)<sup>1</sup>" in text
    assert "<sup>1</sup> The variance is *biased*." in text
    assert "`{cite:t}` is a role." in text
    assert f"[The figure]({page}#fig-two-lines) shows it, [the figure of ioffe2015.shift]({page}#fig-ioffe2015-shift)" in text
    assert ">    > $$a = b + c$$" in text
    assert "https://github.com/owner/name/blob/main/normlib/layers.py" in text
    assert "<summary>Solution to exercise 1</summary>" in text
    assert text.endswith("- Sergey Ioffe and Christian Szegedy (2015). [Batch Normalization](https://arxiv.org/abs/1502.03167).")
    assert text.count("## References") == 1


def test_code_cells_keep_code_and_tags_and_lose_other_options(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"][1:]
    assert code[0].source == 'x = {"a": 1}["a"]  # {cite}`nothing`\n\nprint(f"{{x}}")'
    assert [cell.metadata for cell in code] == [{"tags": ["hide-input", "raises-exception"]}, {"tags": ["hide-output"]}, {}]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, "cell", "exec")


def test_a_cell_break_splits_the_prose(notebook):
    begins = [cell.source.split("\n")[0] for cell in notebook.cells]
    assert "## What it shows" in begins


def test_the_metadata_ask_for_a_gpu_only_where_the_chapter_does(root, notebook):
    assert notebook.metadata["accelerator"] == "GPU"
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    plain = exported(root, "1-origins")
    assert "accelerator" not in plain.metadata
    assert plain.metadata["colab"] == {"provenance": [], "toc_visible": True}


def test_the_setup_installs_the_ref_and_leaves_torch_alone(root):
    setup = exported(root, ref="v1.2").cells[1].source
    assert '"normlib @ git+https://github.com/owner/name@v1.2"' in setup
    assert setup.count("pip") == 1
    assert "git+https://github.com/owner/name@main" in exported(root).cells[1].source


def test_the_setup_runs_and_chooses_a_preset_unless_one_is_set(root, monkeypatch):
    monkeypatch.delenv("NORMLIB_PRESET", raising=False)
    code = exported(root).cells[1].source + '\nprint(os.environ["NORMLIB_PRESET"])\n'
    again = 'os.environ["NORMLIB_PRESET"] = "full"\n' + code
    done = subprocess.run([sys.executable, "-c", code + again], capture_output=True, text=True, check=True)
    first, preset, second, kept = done.stdout.splitlines()
    assert first == second
    assert first.startswith("normlib ")
    assert "torch " in first
    assert preset in ("quick", "laptop")
    assert kept == "full"


def test_the_same_chapter_gives_the_same_bytes(root):
    assert nbformat.writes(exported(root)) == nbformat.writes(exported(root))
    assert len(write_all(root)) == 2
    before = {path: path.read_bytes() for path in (root / "chapters").glob("*.ipynb")}
    assert write_all(root) == []
    assert before == {path: path.read_bytes() for path in (root / "chapters").glob("*.ipynb")}


def test_an_edit_renames_one_cell(root, notebook):
    chapter = root / "chapters" / "2-batch-norm.md"
    chapter.write_text(chapter.read_text(encoding="utf-8").replace("print(0)", "print(00)"), encoding="utf-8")
    before, after = ([cell.id for cell in n.cells] for n in (notebook, exported(root)))
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1


def test_the_check_names_what_is_missing_changed_or_orphaned(root):
    chapters = root / "chapters"
    assert check_all(root) == ["chapters/1-origins.ipynb is missing", "chapters/2-batch-norm.ipynb is missing"]
    write_all(root)
    assert check_all(root) == []
    shutil.copy(chapters / "1-origins.ipynb", chapters / "9-gone.ipynb")
    (chapters / "1-origins.md").write_text(ORIGINS.replace("Text.", "Other text."), encoding="utf-8")
    assert check_all(root) == [
        "chapters/1-origins.ipynb differs from what its chapter gives",
        "chapters/9-gone.ipynb belongs to no chapter; remove it",
    ]


def test_the_command_writes_and_checks(root, capsys):
    assert main(["--root", str(root), "--check"]) == 1
    assert "is missing" in capsys.readouterr().out
    assert main(["--root", str(root)]) == 0
    assert "wrote chapters/1-origins.ipynb" in capsys.readouterr().out
    assert main(["--root", str(root), "--check"]) == 0
    (root / "chapters" / "1-origins.md").write_text(ORIGINS + "\n{nothing}`x`\n", encoding="utf-8")
    assert main(["--root", str(root)]) == 1
    assert "1-origins.md:17: the role {nothing}`x`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("# T\n\n```{code-cell}\nx\n```\n", "a.md:3: .*file_format"),
        ("---\nkernelspec: {name: python3}\n---\n# T\n", "a.md:1: .*file_format"),
        ("---\na: [\n---\n# T\n", "a.md:1: .*YAML"),
        ("# T\n", "a.md:1: .*not a notebook"),
        (FRONT + "```{code-cell}\n:load: x.py\n```\n", "a.md:8: .*'load'"),
        (FRONT + "```{code-cell}\n:tags: hide-input\n```\n", "a.md:8: .*tags"),
    ],
)
def test_errors_name_the_page(root, text, named):
    (root / "chapters" / "a.md").write_text(text, encoding="utf-8")
    with pytest.raises(MystError, match=named):
        exported(root, "a")


@pytest.mark.skipif(ROOT is None or not (ROOT / "references.bib").is_file(), reason="needs the chapters of the repository")
def test_the_chapters_of_this_book():
    site = Site.read(ROOT)
    pages = [path for path in sorted((ROOT / "chapters").glob("*.md")) if "file_format: mystnb" in path.read_text(encoding="utf-8")]
    assert pages
    for path in pages:
        made = export(path, site, ROOT / "references.bib")
        assert leftovers(prose(made)) == []
        assert all(address.startswith("https://") for address in addresses(made))


@pytest.mark.skipif(ROOT is None or not any((ROOT / "chapters").glob("*.ipynb")), reason="no notebooks are committed")
def test_the_committed_notebooks_match_their_chapters():
    assert check_all(ROOT) == []
