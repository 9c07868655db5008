"""Pictures in a run's folder: how previews are named, and PNG files that hold what they were painted from."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ...atomic import replacing

PREVIEW = re.compile(r"step_(\d+)_(\d+)\.png")  # (step, number of the prompt)


def write_png(picture: Image.Image, path: Path, request: str = "") -> None:
    """Write a picture, with ``request`` as its PNG text ``flux2_train``."""
    info = PngInfo()
    if request:
        info.add_text("flux2_train", request)
    with replacing(path) as partial:
        picture.save(partial, "PNG", pnginfo=info)
