"""CIFAR-10: 50,000 + 10,000 color images of 32 x 32, as the archive of Python 2 pickles that its author publishes.

The archive is compared with its published digests before anything in it is unpickled: the MD5 is the owner's (and
torchvision's), the SHA-256 is the one that Keras pins for the same file. BibTeX: krizhevsky2009learning.
"""

from __future__ import annotations

import codecs
import io
import pickle
import tarfile
from typing import Any

import numpy as np

from normlib.data.arrays import Array, Arrays, canonical
from normlib.data.errors import DataError
from normlib.data.recipe import DataFile, Recipe

TRAIN = tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6))
TEST = ("cifar-10-batches-py/test_batch",)


class _Unpickler(pickle.Unpickler):
    """Reads pickled numpy arrays, those of Python 2 too, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):  # Python 2 wrote 0 and 1 for flags that NumPy now wants as bool
            return lambda code, align=False, copy=False: np.dtype(code, bool(align), bool(copy))
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _reconstruct
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for readers in Python 2
            return codecs.encode
        raise DataError(f"the CIFAR-10 archive asks for {module}.{name}, which no published batch holds.")


def _reconstruct(kind: type[Array], shape: tuple[int, ...], code: Any) -> Array:
    return np.ndarray.__new__(kind, shape, np.dtype(code))


def _batches(archive: tarfile.TarFile, names: tuple[str, ...]) -> tuple[Array, Array]:
    pixels, labels = [], []
    for name in names:
        member = archive.extractfile(name)
        if member is None:
            raise DataError(f"the CIFAR-10 archive holds {name}, but not as a file.")
        batch = _Unpickler(member, encoding="latin1").load()
        pixels.append(batch["data"].reshape(-1, 3, 32, 32))
        labels.append(np.asarray(batch["labels"], dtype=np.int64))
    return np.concatenate(pixels), np.concatenate(labels)


def decode(contents: list[bytes]) -> Arrays:
    """Read the batches of `cifar-10-python.tar.gz`: rows of 3,072 values are 3 x 32 x 32, red first."""
    with tarfile.open(fileobj=io.BytesIO(contents[0]), mode="r:gz") as archive:
        x_train, y_train = _batches(archive, TRAIN)
        x_test, y_test = _batches(archive, TEST)
    parts = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return canonical(parts, "cifar-10-python.tar.gz", classes=10)


CIFAR10 = Recipe(
    name="cifar10",
    classes=10,
    decode=decode,
    url="https://www.cs.toronto.edu/~kriz/",
    files=(
        DataFile(
            name="cifar-10-python.tar.gz",
            size=170_498_071,
            sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            md5="c58f30108f718f92721af3b95e74349a",
            unpack=False,
        ),
    ),
)
