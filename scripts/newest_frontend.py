"""The newest frontend that is tested, fetched once. A server takes it with ``--front-end-root``.

``python scripts/newest_frontend.py`` prints its folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINNED = ROOT / "scripts" / "requirements-frontend.txt"


def version() -> str:
    """The version that scripts/requirements-frontend.txt pins."""
    return PINNED.read_text().split("==")[1].strip()


def newest_frontend() -> Path:
    """The folder to serve. Raises CalledProcessError if pip cannot fetch it."""
    target = ROOT / ".cache" / "frontend" / version()
    static = target / "comfyui_frontend_package" / "static"
    if not (static / "index.html").is_file():
        target_options = ["-q", "--no-deps", "--target", str(target), "-r", str(PINNED)]
        command = [sys.executable, "-m", "pip", "install", *target_options]
        subprocess.run(command, check=True)
    return static


if __name__ == "__main__":
    print(newest_frontend())
