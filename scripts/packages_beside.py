"""Prints a folder with the packages that another ComfyUI pins and this Python has in another version, for PYTHONPATH.

``python scripts/packages_beside.py COMFYUI CACHE``. Each is installed without its own requirements.
"""

import hashlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement


def lacking(comfyui: Path) -> list[str]:
    """The requirements of that ComfyUI that what is installed here does not meet."""
    lines = (line.split("#")[0].strip() for line in (comfyui / "requirements.txt").read_text().splitlines())
    return sorted(str(found) for found in map(Requirement, filter(None, lines)) if not _is_met(found))


def _is_met(requirement: Requirement) -> bool:
    if requirement.marker and not requirement.marker.evaluate():
        return True
    try:
        return requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def main() -> None:
    """Install what is lacking, once, and print the folder; print nothing where nothing is."""
    comfyui, cache = map(Path, sys.argv[1:])
    wanted = lacking(comfyui)
    if not wanted:
        return
    folder = cache / "beside" / hashlib.sha256(" ".join([sys.version, *wanted]).encode()).hexdigest()[:12]
    if not folder.is_dir():
        print(f"Installing beside: {', '.join(wanted)} ...", file=sys.stderr)
        partial = folder.with_suffix(".partial")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", partial, *wanted]
        subprocess.run(command, check=True, stdout=sys.stderr)
        partial.rename(folder)
    print(folder)


if __name__ == "__main__":
    main()
