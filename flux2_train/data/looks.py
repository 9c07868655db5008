"""Pictures that look nearly the same: copies that were saved again, scaled, made brighter, or cut a little.

The coarse form of a picture is what a perceptual hash takes from it (pHash: C. Zauner, "Implementation and Benchmarking
of Perceptual Image Hash Functions", 2010): the lowest frequencies of its cosine transform. pHash keeps their signs, and
of grey alone. In drawings, whose areas are flat, many of these are zero and their signs chance, and two poses of one
figure have nearly the same grey. So here the values are kept, of each colour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE, KEPT = 64, 8  # a picture is scaled to SIDE x SIDE pixels; KEPT x KEPT frequencies of each colour are kept
# 1 - cosine between two coarse forms. In our example data sets copies differ by at most 0.020 (saved as JPEG of quality
# 40, half or 1.5 times as large, a tenth brighter, 2 % cut off at each side), different pictures by 0.033 or more.
NEARLY_THE_SAME = 0.02
MOST = 20_000  # pictures: all pairs of more would take seconds
_ROWS = 1024  # compared with all others at once


def look_of(image: Image.Image) -> str:
    """The coarse form of an RGB image as hexadecimal text; empty if the image has one colour."""
    from scipy.fft import dctn  # only when pictures are read for the first time

    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    frequencies = dctn(pixels, axes=(0, 1), norm="ortho")[:KEPT, :KEPT].reshape(KEPT * KEPT, 3)[1:]  # 0 is brightness
    largest = np.abs(frequencies).max()
    if largest < 1:  # of 255 x SIDE: rounding
        return ""
    return (frequencies / largest * 127).round().astype(np.int8).tobytes().hex()


def alike(looks: Sequence[str]) -> list[list[int]]:
    """Groups of indices of ``looks`` (see ``look_of``) that are nearly the same, or linked by others that are."""
    places = [number for number, look in enumerate(looks) if look]
    if not 1 < len(places) <= MOST:
        return []
    forms = np.stack([np.frombuffer(bytes.fromhex(looks[place]), np.int8) for place in places]).astype(np.float32)
    forms /= np.linalg.norm(forms, axis=1, keepdims=True)
    group = list(range(len(places)))  # of each picture: the first one of its group

    def first(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    for start in range(0, len(forms), _ROWS):
        near = forms[start : start + _ROWS] @ forms.T > 1 - NEARLY_THE_SAME
        for one, other in zip(*np.nonzero(near), strict=True):
            a, b = sorted((first(start + int(one)), first(int(other))))
            group[b] = a
    members: dict[int, list[int]] = {}
    for number, place in enumerate(places):
        members.setdefault(first(number), []).append(place)
    return [each for each in members.values() if len(each) > 1]
