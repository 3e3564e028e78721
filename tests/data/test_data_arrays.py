"""What files hold: idx, npz, the CIFAR-10 archive, and the digest of their content."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from normlib.data import DamagedDataError, DataError
from normlib.data.arrays import canonical, content_digest, parse_idx, read_npz
from normlib.data.cifar import CIFAR10, TEST, TRAIN, decode


def parts(**changed: np.ndarray) -> dict[str, np.ndarray]:
    whole = {
        "x_train": np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3),
        "y_train": np.array([0, 1, 2, 1]),
        "x_test": np.arange(2 * 6, dtype=np.uint8).reshape(2, 2, 3),
        "y_test": np.array([2, 0]),
    }
    return {**whole, **changed}


def test_the_digest_is_what_its_docstring_says() -> None:
    whole = parts()
    sha = hashlib.sha256()
    for key, array in whole.items():
        if key.startswith("x"):
            sha.update(f"{key}:|u1:{len(array)}x1x2x3\n".encode() + array.tobytes())
        else:
            sha.update(f"{key}:<i8:{len(array)}\n".encode() + b"".join(struct.pack("<q", v) for v in array))
    assert content_digest(canonical(whole, "test")) == sha.hexdigest()


def test_the_digest_sees_content_and_not_form() -> None:
    plain = content_digest(canonical(parts(), "test"))
    other_form = parts(
        x_train=np.asfortranarray(parts()["x_train"][:, None]),
        y_train=parts()["y_train"].astype(">u2"),
        y_test=parts()["y_test"].astype(np.uint8),
    )
    assert content_digest(canonical(other_form, "test")) == plain
    for key, array in parts().items():
        changed = array.copy()
        changed.flat[-1] += 1
        assert content_digest(canonical(parts(**{key: changed}), "test")) != plain
    reshaped = parts(x_train=parts()["x_train"].reshape(4, 3, 2), x_test=parts()["x_test"].reshape(2, 3, 2))
    assert content_digest(canonical(reshaped, "test")) != plain


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"x_train": np.zeros((4, 2, 3))}, r"x_train has dtype float64 .* expected uint8"),
        ({"x_train": np.zeros((4, 6), np.uint8)}, r"x_train has dtype uint8 and shape \(4, 6\)"),
        ({"x_test": np.zeros((0, 2, 3), np.uint8)}, r"at least one image"),
        ({"x_train": np.zeros((4, 8, 8, 3), np.uint8)}, r"transpose\(0, 3, 1, 2\)"),
        ({"x_test": np.zeros((2, 5, 5), np.uint8)}, r"\(1, 2, 3\), but x_test of shape \(1, 5, 5\)"),
        ({"y_train": np.zeros(3, int)}, r"y_train .* shape \(3,\); expected integers of shape \(4,\)"),
        ({"y_train": np.zeros(4)}, r"y_train has dtype float64"),
        ({"y_test": np.array([3, 0])}, r"y_test runs from 0 to 3; expected labels from 0 to 2"),
        ({"y_test": np.array([-1, 0])}, r"y_test runs from -1 to 0"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changed: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(DataError, match=says):
        canonical(parts(**changed), "here.npz", classes=3)


def test_idx_is_read_back_and_its_faults_are_named() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 4) + array.tobytes()
    assert np.array_equal(parse_idx(content, "a"), array)
    with pytest.raises(DataError, match=r"a holds 23 values, but its header says \(2, 3, 4\)"):
        parse_idx(content[:-1], "a")
    with pytest.raises(DataError, match="ends within the header"):
        parse_idx(content[:9], "a")
    with pytest.raises(DataError, match="not an idx file of bytes: it starts with 00000d03"):
        parse_idx(b"\0\0\x0d\x03" + content[4:], "a")


def test_an_npz_lacking_an_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **{key: array for key, array in parts().items() if key != "x_test"})
    with pytest.raises(DataError, match=r"own.npz holds .* but \['x_test'\] are missing"):
        read_npz(tmp_path / "own.npz", "own")


@pytest.mark.parametrize("how", ["cut", "text", "flipped", "pickled", "single"])
def test_an_npz_that_cannot_be_read_is_damaged(tmp_path: Path, how: str) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **parts(**({"y_test": np.array([{}, 0])} if how == "pickled" else {})))
    content = path.read_bytes()
    if how == "single":
        np.save(path.with_suffix(".npy"), parts()["x_train"])
        path.write_bytes(path.with_suffix(".npy").read_bytes())
    elif how != "pickled":
        spot = content.index(parts()["x_train"].tobytes())
        flipped = content[:spot] + b"\xff" + content[spot + 1 :]
        path.write_bytes({"cut": content[: len(content) // 2], "text": b"hello", "flipped": flipped}[how])
    with pytest.raises(DamagedDataError, match=r"own.npz cannot be read as the npz of 'own'"):
        read_npz(path, "own")


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """Write a batch with the opcodes that Python 2 and its NumPy wrote: byte strings, and 0 and 1 as flags."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    def tuple_of(*items: bytes) -> bytes:
        return b"(" + b"".join(items) + b"t"

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + tuple_of(text(b"u1"), integer(0), integer(1)) + b"R"
    dtype += tuple_of(integer(3), text(b"|"), b"N", b"N", b"N", integer(-1), integer(-1), integer(0)) + b"b"
    array = b"cnumpy.core.multiarray\n_reconstruct\n"
    array += tuple_of(b"cnumpy\nndarray\n", tuple_of(integer(0)), text(b"b")) + b"R"
    shape = tuple_of(*map(integer, data.shape))
    array += tuple_of(integer(1), shape, dtype, b"I00\n", text(data.tobytes())) + b"b"
    listed = b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + text(b"labels") + listed + text(b"data") + array + b"u."


def archive(batch: object, names: tuple[str, ...] = (*TRAIN, *TEST)) -> tuple[bytes, np.ndarray]:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, 2, 3072), dtype=np.uint8)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for number, name in enumerate(names):
            content = batch(pixels[number], [number, 9 - number])  # type: ignore[operator]
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue(), pixels


def python3_batch(data: np.ndarray, labels: list[int]) -> bytes:
    return pickle.dumps({"data": data, "labels": labels}, protocol=2)


@pytest.mark.parametrize("batch", [python2_batch, python3_batch])
def test_the_cifar_archive_is_decoded(batch: object) -> None:
    content, pixels = archive(batch)
    arrays = decode([content])
    assert np.array_equal(arrays.x_train, pixels[:5].reshape(10, 3, 32, 32))
    assert np.array_equal(arrays.x_test, pixels[5].reshape(2, 3, 32, 32))
    assert arrays.y_train.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert arrays.y_test.tolist() == [5, 4]


def test_the_cifar_archive_runs_no_code() -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("1 + 1",)

    content, _ = archive(lambda data, labels: pickle.dumps({"data": Evil(), "labels": labels}, protocol=2))
    with pytest.raises(DataError, match=r"asks for (__builtin__|builtins)\.eval"):
        decode([content])


def test_the_cifar_archive_is_compared_before_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(archive(python3_batch)[0])
    with pytest.raises(DamagedDataError, match=CIFAR10.files[0].sha256):
        CIFAR10.files[0].read(path)
