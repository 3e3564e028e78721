"""Downloads from a server on the loopback interface: whole, cut, wrong, missing, and none at all."""

from __future__ import annotations

import gzip
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from normlib.data import MissingDataError, Places
from normlib.data.download import address, download
from normlib.data.mnist import FASHION_MNIST, MNIST
from normlib.data.store import obtain


def left(places: Places) -> list[str]:
    """Every file in the cache but the lock."""
    return sorted(path.name for path in places.cache.rglob("*") if path.is_file() and path.name != ".lock")


def test_a_download_fills_the_cache_and_is_not_repeated(small, places: Places, server) -> None:
    server.serve(small)
    places = replace(places, mirror=server.url + "/")
    loaded = obtain(small.recipe, places)
    assert (loaded.digest, loaded.official, loaded.source) == (small.recipe.digest, True, "user cache")
    assert left(places) == sorted(small.files)
    obtain(small.recipe, places)
    assert server.asked == [f"/small/{name}" for name in small.files]


def test_the_official_address_is_used_without_a_mirror(small, places: Places, server) -> None:
    server.serve(small)
    recipe = replace(small.recipe, url=f"{server.url}/small/")
    assert obtain(recipe, replace(places, mirror="")).official
    assert address(MNIST, MNIST.files[0], replace(places, mirror="")).startswith("https://ossci-datasets.s3.amazonaws")
    name = FASHION_MNIST.files[2].name
    assert address(FASHION_MNIST, FASHION_MNIST.files[2], places) == f"{places.mirror}/fashion-mnist/{name}"


def test_a_mirror_may_compress_anew(small, places: Places, server) -> None:
    server.serve(small, lambda content: gzip.compress(gzip.decompress(content), compresslevel=1))
    assert obtain(small.recipe, replace(places, mirror=server.url)).official


def test_only_what_is_missing_is_fetched(small, places: Places, server) -> None:
    server.serve(small)
    (small.put(places.cache / "small") / "y_train.gz").unlink()
    (places.cache / "small" / ".y_train.gz.part").write_bytes(b"left over from a killed process")
    assert obtain(small.recipe, replace(places, mirror=server.url)).official
    assert server.asked == ["/small/y_train.gz"]
    assert left(places) == sorted(small.files)


@pytest.mark.parametrize("how", ["cut", "short", "other", "absent"])
def test_a_failed_download_is_said_and_leaves_nothing(small, places: Places, server, how: str) -> None:
    server.serve(small)
    path, file = "/small/y_train.gz", small.recipe.files[1]
    if how == "cut":  # the connection ends before the promised length
        server.cut.add(path)
    elif how == "absent":
        del server.files[path]
    else:  # "short" is a truncated file that the server believes to be whole
        server.files[path] = small.files["y_train.gz"][:-9] if how == "short" else small.files["y_test.gz"]
    with pytest.raises(MissingDataError) as caught:
        obtain(small.recipe, replace(places, mirror=server.url))
    text = str(caught.value)
    assert f"{server.url}{path}" in text
    assert {"absent": "404", "cut": "IncompleteRead"}.get(how, f"expected sha256 {file.sha256}") in text
    assert "Three ways to get it" in text
    assert left(places) == ["x_train.gz"]


def test_without_a_server_the_error_says_so(small, places: Places) -> None:
    with pytest.raises(MissingDataError, match=r"download: http://127.0.0.1:9/small/x_train.gz: ConnectionError"):
        obtain(small.recipe, places)
    assert left(places) == []


def test_a_mirror_that_is_no_address_is_said(small, places: Places) -> None:
    with pytest.raises(MissingDataError, match=r"download: mirror/small/x_train\.gz: MissingSchema"):
        obtain(small.recipe, replace(places, mirror="mirror"))


def test_without_pooch_the_error_names_it(small, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingDataError, match="download: downloads need pooch"):
        obtain(small.recipe, places)
    assert left(places) == []


def test_a_cache_that_is_no_folder_is_said(small, places: Places, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(MissingDataError, match="download: cannot write to the cache"):
        obtain(small.recipe, places)


def test_two_at_once_fetch_once(small, places: Places, server) -> None:
    server.serve(small)
    places = replace(places, mirror=server.url)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: download(small.recipe, places), range(2)))
    assert sorted(server.asked) == sorted(f"/small/{name}" for name in small.files)


def test_a_terminal_sees_a_bar_and_a_log_does_not(
    small, places: Places, server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.serve(small)
    places = replace(places, mirror=server.url)
    download(small.recipe, places)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download(small.recipe, replace(places, cache=places.cache / "other"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "x_train.gz: 100%" in err
