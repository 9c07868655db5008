"""The newest frontend of ComfyUI that this pack is tried with, beside the one that ComfyUI itself pins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

NEWEST = "1.58.1"  # raise it by a commit
ROOT = Path(__file__).resolve().parents[1]


def newest() -> Path:
    """The folder for ``main.py --front-end-root``; fetched once, into .cache or the folder FLUX2_FRONTEND."""
    given = os.environ.get("FLUX2_FRONTEND")
    place = Path(given) if given else ROOT / ".cache" / f"frontend-{NEWEST}"
    static = place / "comfyui_frontend_package" / "static"
    if not (static / "index.html").is_file():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place)]
        subprocess.run([*command, f"comfyui-frontend-package=={NEWEST}"], check=True)
    return static
