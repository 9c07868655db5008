"""Turns a finished demo's before_after.png into the README's picture and the workflows' thumbnails.

``python scripts/make_pictures.py [DIR]`` after ``scripts/demo --out DIR``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
THUMBNAIL = (400, 400)


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "out")
    shutil.copyfile(out / "before_after.png", ROOT / "docs" / "before_after.png")
    picture = Image.open(out / "before_after.png").convert("RGB")
    picture.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    for workflow in (ROOT / "workflows").glob("*.json"):
        picture.save(workflow.with_suffix(".jpg"), quality=85)


if __name__ == "__main__":
    main()
