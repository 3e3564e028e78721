"""The digits that come with scikit-learn: 1,797 gray images of 8 x 8, 17 levels. BibTeX: alpaydin1998optical."""

from __future__ import annotations

import numpy as np

from normlib.data.arrays import Arrays, canonical
from normlib.data.dataset import balanced_pick
from normlib.data.recipe import Recipe

TEST_IMAGES = 360
CONTENT = "f405ce60f69d095dc945c3ae382392a5fd256f2b7f97e9c1fdefc7d111637c94"


def decode(contents: list[bytes]) -> Arrays:
    """Split scikit-learn's digits once and for all: 36 test images of each class, the other 1,437 for training."""
    from sklearn.datasets import load_digits  # a second of import that only this set needs

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    test[balanced_pick(labels, TEST_IMAGES, seed=0)] = True
    parts = {"x_train": images[~test], "y_train": labels[~test], "x_test": images[test], "y_test": labels[test]}
    return canonical(parts, "scikit-learn's digits", classes=10)


DIGITS = Recipe(name="digits", classes=10, decode=decode, digest=CONTENT, levels=16)
