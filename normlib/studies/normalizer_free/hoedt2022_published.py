"""The curves of figures 4 and 5 of Hoedt, Hochreiter and Klambauer (2022), read back from the drawings of the post.

The post's figures are vector graphics, so their points are known to about three digits; one seed, which is not stated. One number
for each of the 16 blocks of a ResNet-50; the stem, which the post draws as entry 0, is left out. Of the curves that are not here
(squared mean and residual variance without norm) only parts were read. Keys: arm, then quantity.
"""

from __future__ import annotations

PUBLISHED: dict[str, dict[str, list[float]]] = {
    "none": {
        "variance": [
            2.64, 4.66, 8.38, 14.8, 27.0, 49.0, 98.3, 187, 410, 891, 1949, 3905, 7855, 1.42e4, 2.86e4, 6.26e4,
        ],
    },
    "batch": {
        "squared_mean": [4.91, 5.10, 5.23, 0.64, 0.93, 1.32, 1.59, 0.65, 0.90, 1.16, 1.47, 1.84, 2.18, 0.64, 0.95, 1.31],
        "variance": [1.41, 2.10, 2.78, 1.37, 2.06, 2.74, 3.43, 1.36, 2.04, 2.73, 3.41, 4.10, 4.78, 1.36, 2.05, 2.73],
    },
    "nf_he": {
        "squared_mean": [14.1, 17.2, 22.5, 9.6, 14.1, 18.4, 22.3, 10.1, 15.4, 19.2, 24.3, 30.3, 34.6, 10.0, 14.3, 17.6],
        "variance": [2.68, 3.42, 4.12, 1.37, 2.04, 2.60, 3.09, 1.11, 1.73, 2.22, 2.87, 3.50, 3.96, 1.09, 1.75, 2.37],
        "residual_variance": [1.23, 0.76, 0.68, 0.54, 0.67, 0.56, 0.50, 0.53, 0.62, 0.51, 0.64, 0.61, 0.49, 0.54, 0.67, 0.63],
    },
    "nf_scaled": {
        "variance": [2.03, 3.01, 4.00, 1.99, 2.98, 3.96, 4.94, 1.97, 2.93, 3.90, 4.85, 5.81, 6.75, 1.90, 2.81, 3.71],
        "residual_variance": [1.01, 0.99, 0.99, 0.99, 0.99, 0.98, 0.98, 0.98, 0.97, 0.96, 0.96, 0.95, 0.95, 0.94, 0.91, 0.90],
    },
}  # fmt: skip
