"""A folder that holds this project, ComfyUI and what a machine has not that has torch and transformers, but no network.

``python -m bench.gpu`` runs in it as in a checkout. It has ComfyUI without its tests and without anybody's models, and
wheels for Linux on x86-64. av (35 MB) and scipy (35 MB) do not fit beside comfy-kitchen (45 MB): see ``packed``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from bench.gpu.packed import ARCHIVE, COMFYUI, PACKAGES
from flux2_train.errors import UserError
from flux2_train.host.system.bootstrap import find_comfyui

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60_000_000  # bytes of the whole folder
PROJECT = ("bench", "flux2_train", "LICENSE", "README.md", "pyproject.toml", "requirements.txt")
WHEELS = ("comfy-kitchen", "comfy-aimdo", "einops", "pillow", "peft")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64",
             "manylinux2014_x86_64", "manylinux_2_12_x86_64", "manylinux2010_x86_64")  # fmt: skip
# Of ComfyUI's own folder: somebody's files, and what is not imported here.
LEFT_OUT = ("tests", "tests-unit", "models", "input", "output", "user", "temp", "custom_nodes", "blueprints",
            "script_examples", "comfy_api_nodes", ".git", ".github", ".ci")  # fmt: skip
OTHER_BACKENDS = re.compile(r"comfy_kitchen/backends/hip/.*\.so$|comfy_aimdo/aimdo_rocm\.so$|.*\.(dll|pyd)$")


def pack(folder: Path, python: str) -> str:
    """Fill ``folder``, which must be new or empty. Returns a sentence on what is in it. Raises UserError."""
    if not re.fullmatch(r"3\.\d+", python):
        raise UserError(f"--python is {python!r}; give it as 3.12.")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROJECT:
        _copy(ROOT / name, folder / name)
    with tempfile.TemporaryDirectory() as place:
        parts = Path(place)
        _copy_comfyui(find_comfyui(), parts / COMFYUI)
        for wheel in _downloaded(parts / "wheels", python):
            _unzip(wheel, parts / PACKAGES)
        with tarfile.open(folder / ARCHIVE, "w:xz") as tar:
            for name in (COMFYUI, PACKAGES):
                tar.add(parts / name, name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        raise UserError(f"{folder} takes {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f} MB.")
    return f"{folder}: {size / 1e6:.1f} MB, for Python {python}. Run python -m bench.gpu in it."


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "results", "world"))
    else:
        shutil.copy(source, target)


def _copy_comfyui(source: Path, target: Path) -> None:
    """Its code, with the empty folders that it expects."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name == "__pycache__" or (Path(folder) == source and name in LEFT_OUT)]

    shutil.copytree(source, target, ignore=left_out)
    for name in ("models", "input", "output", "user", "custom_nodes"):
        (target / name).mkdir(exist_ok=True)


def _downloaded(folder: Path, python: str) -> list[Path]:
    """The wheels, of the versions that ComfyUI asks for."""
    text = (find_comfyui() / "requirements.txt").read_text()
    asked = [next(iter(re.findall(rf"^{re.escape(name)}==\S+", text, re.MULTILINE)), name) for name in WHEELS]
    tag = f"cp{python.replace('.', '')}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder),
               "--python-version", python, "--implementation", "cp", "--abi", tag, "--abi", "abi3", "--abi", "none",
               *(word for platform in PLATFORMS for word in ("--platform", platform)), *asked]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"pip could not download {', '.join(asked)}: {done.stderr.strip()[-500:]}")
    return sorted(folder.glob("*.whl"))


def _unzip(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not OTHER_BACKENDS.match(name):
                archive.extract(name, target)
