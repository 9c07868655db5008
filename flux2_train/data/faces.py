"""Where the largest face in a picture is, with OpenCV where it is installed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from .crops import Point
from .images import to_rgb

LONGEST = 1024  # pixels: larger images are scaled down first; this takes a tenth of the time and finds large faces
CASCADE = "haarcascade_frontalface_default.xml"


@cache
def _cascade():
    try:
        import cv2
    except ImportError as error:
        raise UserError(_refusal("OpenCV, which is not installed")) from error
    # The packages of OpenCV 5 that pip installs have neither the cascade classifier nor its files.
    file = Path(getattr(getattr(cv2, "data", None), "haarcascades", "")) / CASCADE
    if not hasattr(cv2, "CascadeClassifier") or not file.is_file():
        raise UserError(_refusal(f"the face cascade of OpenCV 4, which OpenCV {cv2.__version__} does not have"))
    return cv2.CascadeClassifier(str(file))


def _refusal(what: str) -> str:
    return (
        f"crop_style 'face' needs {what}: pip install 'opencv-python-headless<5' with ComfyUI's Python, or choose "
        "another crop_style."
    )


def require() -> None:
    """Raise UserError where faces cannot be found on this computer."""
    _cascade()


def largest_face(image: Image.Image) -> Point | None:
    """The centre (x, y) of the largest frontal face in pixels, None where there is none."""
    small = to_rgb(image).convert("L")
    small.thumbnail((LONGEST, LONGEST))
    boxes = _cascade().detectMultiScale(np.asarray(small), scaleFactor=1.1, minNeighbors=4)
    if len(boxes) == 0:
        return None
    x, y, w, h = max(boxes, key=lambda face: (int(face[2]) * int(face[3]), tuple(map(int, face))))
    scale = image.width / small.width
    return float(x + w / 2) * scale, float(y + h / 2) * scale
