"""MNIST and Fashion-MNIST: 60,000 + 10,000 gray images of 28 x 28 in four idx files each.

The digests of the unpacked files were computed from copies whose MD5s equal the published ones. BibTeX: lecun1998mnist,
xiao2017fashion.
"""

from __future__ import annotations

from normlib.data.arrays import Arrays, canonical, parse_idx
from normlib.data.recipe import DataFile, Recipe

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SIZES = (47_040_016, 60_008, 7_840_016, 10_008)


def decode(contents: list[bytes]) -> Arrays:
    """Put four idx files together: training images and labels, test images and labels."""
    parts = [parse_idx(content, name) for content, name in zip(contents, FILES, strict=True)]
    return canonical(dict(zip(Arrays._fields, parts, strict=True)), "the idx files", classes=10)


def _files(digests: list[tuple[str, str]]) -> tuple[DataFile, ...]:
    return tuple(DataFile(f"{name}.gz", size, sha256, md5) for name, size, (sha256, md5) in zip(FILES, SIZES, digests, strict=True))


MNIST = Recipe(
    name="mnist",
    classes=10,
    decode=decode,
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    digest="706524beef0399507764190cec9109ed48226d1b5a9674a1a29b550919ba3516",
    files=_files(
        [
            ("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", "d53e105ee54ea40749a09fcbcd1e9432"),
            ("0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", "9fb629c4189551a2d022fa330f9573f3"),
            ("ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", "ec29112dd5afa0611ce80d1b7f02629c"),
        ]
    ),
)

FASHION_MNIST = Recipe(
    name="fashion-mnist",
    classes=10,
    decode=decode,
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    package="dataset-fashion-mnist",
    digest="739520ec06188fd3a8da779b122f41930ec8b4a878a043486e3291a4dc820347",
    files=_files(
        [
            ("c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", "25c81989df183df01b3e8a0aad5dffbe"),
            ("5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", "bef4ecab320f06d8554ea6380940ec79"),
            ("0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", "bb300cfdad3c16e7a12a480ee83cd310"),
        ]
    ),
)
