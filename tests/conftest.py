"""What every test needs: one thread, and a folder of records that is not the book's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

EARLY = ["test_wheel.py", "test_overviews.py", "test_every_study.py", "test_build.py", "test_pages.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker is left alone with one, or waits for another to build the book."""
    items.sort(key=lambda item: EARLY.index(item.path.name) if item.path.name in EARLY else len(EARLY))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMLIB_RESULTS", str(tmp_path_factory.mktemp("results")))
        yield
