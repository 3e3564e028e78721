"""The four arrays of a data set, the forms that files hold them in, and the digest of what they say."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from normlib.data.errors import DamagedDataError, DataError

Array = np.ndarray[Any, Any]


class Arrays(NamedTuple):
    """Images as uint8 of shape (N, C, H, W) and labels as little-endian int64 of shape (N,)."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array


def canonical(parts: dict[str, Array], where: str, classes: int = 0) -> Arrays:
    """Check four arrays and bring them to the one form that everything else relies on.

    Args:
        parts: the arrays by name; images are (N, H, W) or (N, C, H, W) of uint8, labels are integers.
        where: what to call their origin in an error, usually a path.
        classes: how many classes there may be; 0 where that is not known.

    Raises:
        DataError: naming the origin, the array, what it is, and what it should be.
    """
    missing = [key for key in Arrays._fields if key not in parts]
    if missing:
        raise DataError(
            f"{where} holds the arrays {sorted(parts)}, but {missing} are missing. A data set needs "
            f"{list(Arrays._fields)}; write it with numpy.savez(path, x_train=..., y_train=..., ...)."
        )
    x_train, x_test = (_images(parts[key], key, where) for key in ("x_train", "x_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(f"{where}: x_train holds images of shape {x_train.shape[1:]}, but x_test of shape {x_test.shape[1:]}.")
    y_train = _labels(parts["y_train"], "y_train", len(x_train), where, classes)
    y_test = _labels(parts["y_test"], "y_test", len(x_test), where, classes)
    return Arrays(x_train, y_train, x_test, y_test)


def _images(x: Array, key: str, where: str) -> Array:
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or 0 in x.shape:
        raise DataError(
            f"{where}: {key} has dtype {x.dtype} and shape {x.shape}; expected uint8 (0 to 255) of shape "
            "(N, H, W) or (N, C, H, W) with at least one image."
        )
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        raise DataError(
            f"{where}: {key} has shape {x.shape}, which looks like (N, H, W, C); channels come second here: "
            f"save {key}.transpose(0, 3, 1, 2)."
        )
    return np.ascontiguousarray(x if x.ndim == 4 else x[:, None])


def _labels(y: Array, key: str, count: int, where: str, classes: int) -> Array:
    if y.dtype.kind not in "iu" or y.shape != (count,):
        raise DataError(
            f"{where}: {key} has dtype {y.dtype} and shape {y.shape}; expected integers of shape ({count},), "
            "one label for each image."
        )
    if y.min() < 0 or (classes and y.max() >= classes):
        top = classes - 1 if classes else "the number of classes minus 1"
        raise DataError(f"{where}: {key} runs from {y.min()} to {y.max()}; expected labels from 0 to {top}.")
    return np.ascontiguousarray(y, dtype="<i8")


def content_digest(arrays: Arrays) -> str:
    """Return the SHA-256 of what the arrays say: names, shapes, pixels and labels, in one order and one form.

    The same content gives the same digest on every machine, whether it came as idx files, as an archive or as an npz.
    """
    sha = hashlib.sha256()
    for key, array in zip(Arrays._fields, arrays, strict=True):
        form = array.astype("u1" if key.startswith("x") else "<i8", order="C", copy=False)
        sha.update(f"{key}:{form.dtype.str}:{'x'.join(map(str, form.shape))}\n".encode())
        sha.update(form.data.cast("B"))
    return sha.hexdigest()


def parse_idx(content: bytes, where: str) -> Array:
    """Read an array of unsigned bytes in LeCun's idx format: 0, 0, type 8, rank, big-endian sizes, then the values."""
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{where} is not an idx file of bytes: it starts with {content[:4].hex() or 'nothing'}.")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{where} ends within the header of an idx file: {len(content)} bytes.")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{where} holds {len(content) - start} values, but its header says {shape}.")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def read_npz(path: Path, name: str, classes: int = 0) -> Arrays:
    """Read a user's own `NAME.npz`; nothing in it is ever unpickled.

    Raises:
        DamagedDataError: if the file cannot be read as an npz.
        DataError: if arrays are missing or have another shape or dtype.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:  # np.load leaks what it opens
            parts = {key: stored[key] for key in Arrays._fields if key in stored.files}
    except PermissionError:
        raise
    except Exception as problem:  # a broken zip raises nearly anything: BadZipFile, EOFError, KeyError, zlib.error
        raise DamagedDataError(
            f"{path} cannot be read as the npz of {name!r}: {problem}. Expected an archive written by numpy.savez "
            f"with {list(Arrays._fields)}. Write it again, or remove it so that {name!r} is looked for elsewhere."
        ) from problem
    return canonical(parts, str(path), classes)
