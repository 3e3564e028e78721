"""Where a number comes from: code, versions, machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn")


def checkout() -> Path | None:
    """Return the root of the git checkout that this package runs from, or None if it is installed elsewhere."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / ".git").exists() else None


def git_state() -> tuple[str | None, bool]:
    """Return the commit of the code and whether the code differs from it.

    It differs when a tracked file other than a record was changed, or when the package has a module that git does not track.
    Outside a checkout the commit is the one that pip noted when it installed from a repository (PEP 610); it is None when
    nothing noted it.
    """
    root = checkout()
    if root is None:
        return _installed_commit(), False
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "--", ":(glob)normlib/**/*.py")
    return commit or None, bool(changes or unknown)


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # there is no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _installed_commit() -> str | None:
    try:
        noted = metadata.distribution("normlib").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    return json.loads(noted).get("vcs_info", {}).get("commit_id") if noted else None


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=4)
def device_name(device: str) -> str:
    """Name the processor or the GPU, as a reader would ("NVIDIA H200", "Intel Xeon, 2 cores")."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].replace("(R)", "").replace("(TM)", "").replace(" CPU", "")
                return " ".join(name.split())
    return platform.processor() or platform.machine()


def best_device() -> str:
    """Return "cuda" where there is one, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def has_device(device: str) -> bool:
    """Tell whether torch can use a device here: "cpu", "cuda", "cuda:1", "mps"."""
    import torch

    kind, _, index = device.partition(":")
    if kind == "cuda":
        return torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()
    return kind == "cpu" or torch.backends.mps.is_available()


def start_peak_memory(device: str) -> None:
    """Start the GPU's count of its peak memory anew, so that each trial has its own."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: str) -> float:
    """Return the peak memory so far in MB: of the GPU's allocator, or resident in this process."""
    if device.startswith("cuda"):
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows keeps no such count
        return float("nan")
    scale = 1e6 if platform.system() == "Darwin" else 1e3
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 1)
