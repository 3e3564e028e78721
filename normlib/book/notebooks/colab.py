"""What Colab needs of a notebook: a first cell that installs the package, and metadata that choose the machine."""

from __future__ import annotations

from typing import Any

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
SETUP = """\
# Install normlib if it is missing; choose the preset that fits this machine.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("normlib") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "{requirement}"], check=True)
    importlib.invalidate_caches()

import torch

import normlib
from normlib.lab.code.provenance import best_device, device_name, git_state

device = best_device()
os.environ.setdefault("NORMLIB_PRESET", "laptop" if device == "cuda" else "quick")
commit = (git_state()[0] or "unknown")[:10]
print(f"normlib {{normlib.__version__}} (commit {{commit}}), torch {{torch.__version__}}, {{device_name(device)}}")
if device == "cpu" and "google.colab" in sys.modules:
    print("There is no GPU here, so studies run at quick. For more: Runtime > Change runtime type > T4 GPU.")"""


def setup(requirement: str) -> str:
    """Return the code of the first cell; it installs only what is missing and never touches torch or NumPy."""
    return SETUP.format(requirement=requirement)


def metadata(front: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a notebook; a chapter asks for a GPU by `colab: {gpu: true}` in its front matter."""
    colab: dict[str, Any] = {"provenance": [], "toc_visible": True}
    wants_gpu = isinstance(front.get("colab"), dict) and front["colab"].get("gpu") is True
    if wants_gpu:
        colab["gpuType"] = "T4"
    found: dict[str, Any] = {"colab": colab, "kernelspec": KERNEL, "language_info": {"name": "python"}}
    return {"accelerator": "GPU", **found} if wants_gpu else found
