"""Small data sets of known content, places for them, and a web server on the loopback interface."""

from __future__ import annotations

import gzip
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from normlib.data.arrays import Arrays, canonical, content_digest
from normlib.data.mnist import decode
from normlib.data.places import Places
from normlib.data.recipe import DataFile, Recipe


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def idx(array: np.ndarray) -> bytes:
    """Write an array of bytes in idx format, apart from the package's own code."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@dataclass
class Small:
    """A published set of 30 + 20 images: its recipe, its arrays, and its files as a server would hand them out."""

    recipe: Recipe
    arrays: Arrays
    files: dict[str, bytes]

    def put(self, folder: Path, **changed: bytes) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {**self.files, **changed}.items():
            (folder / name).write_bytes(content)
        return folder


@pytest.fixture(scope="session")
def small() -> Small:
    rng = np.random.default_rng(0)
    parts = {
        "x_train": rng.integers(0, 256, (30, 6, 4), dtype=np.uint8),
        "y_train": (np.arange(30) % 10).astype(np.uint8),
        "x_test": rng.integers(0, 256, (20, 6, 4), dtype=np.uint8),
        "y_test": (np.arange(20) % 10).astype(np.uint8),
    }
    contents = {f"{key}.gz": idx(array) for key, array in parts.items()}
    arrays = canonical(parts, "small")
    recipe = Recipe(
        name="small",
        classes=10,
        decode=decode,
        url="http://127.0.0.1:9/",  # the discard port: nobody listens
        package="dataset-small",
        digest=content_digest(arrays),
        files=tuple(
            DataFile(name, len(content), hashlib.sha256(content).hexdigest(), md5=hashlib.md5(content).hexdigest())
            for name, content in contents.items()
        ),
    )
    return Small(recipe, arrays, {name: gzip.compress(content, mtime=0) for name, content in contents.items()})


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Empty places: a data folder, a cache, a system folder, and a mirror that refuses connections."""
    (tmp_path / "data").mkdir()
    return Places(
        data=tmp_path / "data",
        cache=tmp_path / "cache",
        system=tmp_path / "system",
        mirror="http://127.0.0.1:9",
    )


@dataclass
class Server:
    """Hands out `files` by path; a path in `cut` promises the whole file and sends half of it."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def serve(self, small: Small, change: Callable[[bytes], bytes] = lambda content: content) -> None:
        self.files = {f"/small/{name}": change(content) for name, content in small.files.items()}


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path in state.cut else content)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield state
        http.shutdown()
        thread.join()
