"""Running where ComfyUI's packages are not installed: what was packed is used, and what is missing is replaced.

ComfyUI imports packages at the top of its files for what training never does: videos, sound, SDE samplers. Where one is
missing, a module takes its place whose names exist and raise ImportError when they are called. Only this bench does so,
and where they are installed nothing is replaced.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ARCHIVE, PACKAGES, COMFYUI = "parts.tar.xz", ".packages", ".comfyui"
# Of ComfyUI's requirements and ours, what nothing needs that this bench does.
REPLACEABLE = ("av", "scipy", "torchsde", "torchvision", "torchaudio", "kornia", "spandrel", "sentencepiece", "aiohttp",
               "yarl", "alembic", "sqlalchemy", "blake3", "simpleeval", "requests", "pydantic", "pydantic_settings",
               "OpenGL", "matplotlib")  # fmt: skip


def unpack(root: Path) -> None:
    """Unpack the archive of a packed folder, once. Does nothing in a checkout."""
    archive = root / ARCHIVE
    if not archive.is_file() or (root / COMFYUI / "comfyui_version.py").is_file():
        return
    print(f"unpacking {archive.name} ...", file=sys.stderr)
    with tarfile.open(archive) as tar:
        tar.extractall(root, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def complete(root: Path) -> list[str]:
    """Make packed packages importable behind installed ones, and replace what is missing. Returns what was replaced."""
    folder = root / PACKAGES
    if folder.is_dir():
        sys.path.append(str(folder))
    missing = [name for name in REPLACEABLE if importlib.util.find_spec(name) is None]
    if missing:
        sys.meta_path.append(Replacer(missing))
    return missing


class Absent(type):
    """The class of everything in a package that is not installed: any name of it is there, and none can be called."""

    def __getattr__(cls, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(name, (), {"__module__": cls.__module__})

    def __call__(cls, *args, **kwargs):
        if cls is Absent:
            return super().__call__(*args, **kwargs)
        module = cls.__mro__[-2].__module__  # of the name that a class of somebody else was made from
        raise ImportError(f"{module.partition('.')[0]} is not installed, and {module}.{cls.__name__} is needed here.")


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(name, (), {"__module__": self.__name__})


class Replacer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds, behind everything else, modules of packages that are not installed."""

    def __init__(self, packages: Sequence[str]):
        self.packages = frozenset(packages)

    def find_spec(self, name: str, path: object = None, target: object = None):
        """See ``importlib``."""
        if name.partition(".")[0] not in self.packages:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """See ``importlib``."""
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """See ``importlib``."""
