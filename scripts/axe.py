"""axe-core, which looks for what keeps people with a screen reader or a keyboard out. Fetched once, through npm."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = "4.10.3"


def axe_core() -> Path:
    """The file to load into a page. Raises RuntimeError with the reason if npm cannot fetch it."""
    target = ROOT / ".cache" / "axe" / VERSION
    script = target / "node_modules" / "axe-core" / "axe.min.js"
    if script.is_file():
        return script
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is not installed, so axe-core cannot be fetched")
    target.mkdir(parents=True, exist_ok=True)
    command = [
        npm,
        "install",
        "--silent",
        "--ignore-scripts",
        "--no-save",
        "--prefix",
        str(target),
        f"axe-core@{VERSION}",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if not script.is_file():
        raise RuntimeError(f"npm could not fetch axe-core: {ran.stderr.strip()[-200:]}")
    return script
