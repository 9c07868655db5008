"""Where the largest face in a picture is, with OpenCV where it is installed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError

LONGEST = 1024  # pixels; faces that matter are found at this size and it takes a tenth of the time


@cache
def _cascade():
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "crop_style 'face' needs OpenCV, which is not installed: pip install opencv-python-headless with ComfyUI's "
            "Python, or choose another crop_style."
        ) from error
    return cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"))


def require() -> None:
    """Raise UserError where faces cannot be found on this computer."""
    _cascade()


def largest_face(image: Image.Image) -> tuple[float, float] | None:
    """The centre (x, y) of the largest frontal face in pixels, None where there is none."""
    small = image.convert("L")
    small.thumbnail((LONGEST, LONGEST))
    found = _cascade().detectMultiScale(np.asarray(small), scaleFactor=1.1, minNeighbors=4)
    if len(found) == 0:
        return None
    x, y, w, h = max(found, key=lambda face: (int(face[2]) * int(face[3]), tuple(map(int, face))))
    scale = image.width / small.width
    return float(x + w / 2) * scale, float(y + h / 2) * scale
