"""Settings of the node Crop Options: which sizes, parts and variations of the images are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .base import Settings, setting, settings
from .text import Ratios

PIXEL_AREA, AREA, PIXEL = "pixel_area", "area", "pixel"
CLOSEST, PRESERVE, SQUARE, RANDOM = "closest", "preserve", "square", "random"
CENTER, CORNER, FACE = "center", "corner", "face"
SKIP, REFUSE = "skip", "refuse"
UPSCALE, DOWNSCALE = "upscale", "downscale"
EACH, NEAREST = "each", "nearest"
LONGEST = 8.0  # images longer than 8:1 are cropped to 8:1, or reported if crop is off
SEED = {"ge": 0, "le": 2**31 - 1, "advanced": True, "control": False}


@settings
class CropSettings(Settings):
    """Which sizes and which parts of the images are trained on.

    ``resolution_type`` is the unit of ``resolutions``, ``minimum`` and ``maximum``: ``pixel_area`` is the side of a
    square of that many pixels, ``area`` megapixels of 1024 x 1024, ``pixel`` the shorter side.
    """

    crop: bool = setting(
        True, "Cut images to the shape of a bucket. Off uses the whole image, stretched by at most 8 pixels."
    )
    crop_aspect: Literal["closest", "preserve", "square", "random"] = setting(
        CLOSEST,
        "The shape to cut to: the closest bucket (or the closest of 'aspects'), the image's own, square, or one drawn "
        "at random from 'aspects'.",
    )
    aspects: Ratios = setting((), "Shapes to choose from, width to height, such as 1:1, 3:2, 2:3. Empty: all buckets.")
    crop_style: Literal["center", "random", "corner", "face"] = setting(
        CENTER,
        "Which part is kept: the centre, a random part, the top left corner, or around the largest face (needs OpenCV "
        "4).",
    )
    crops: int = setting(
        1, "How many random crops of each image are made, each of which is an image of its own.", ge=1, le=64
    )
    flip_x: bool = setting(False, "Also train on every image mirrored left to right. Not for faces or text.")
    flip_y: bool = setting(False, "Also train on every image upside down. For textures, hardly for anything else.")
    resolutions: Ratios = setting((), "Several resolutions instead of Dataset Folder's one, such as 512, 768, 1024.")
    use: Literal["each", "nearest"] = setting(
        EACH, "See every image once at each of the resolutions, or only at the one nearest its own size."
    )
    resolution_type: Literal["pixel_area", "area", "pixel"] = setting(
        PIXEL_AREA,
        "What resolutions, minimum and maximum count: the side of a square of that area, megapixels of 1024 x 1024 (in "
        "'resolutions'), or pixels of the shorter side.",
        advanced=True,
    )
    upscale: bool = setting(
        True, "Scale images up that are smaller than the resolution. Off keeps their size, cut to 16 pixels."
    )
    minimum: float = setting(
        0.0, "The smallest image size that is fine, in the unit of resolution_type; 0 is none.",
        ge=0, le=16384, step=1, round=False, advanced=True,
    )  # fmt: skip
    too_small: Literal["upscale", "skip", "refuse"] = setting(
        UPSCALE,
        "What to do with images below the minimum: scale them up, leave them out, or stop and name them.",
        advanced=True,
    )
    maximum: float = setting(
        0.0, "The largest image size that is fine, in the unit of resolution_type; 0 is none.",
        ge=0, le=65536, step=1, round=False, advanced=True,
    )  # fmt: skip
    too_large: Literal["downscale", "skip", "refuse"] = setting(
        DOWNSCALE,
        "What to do with images above the maximum: scale them down, leave them out, or stop and name them.",
        advanced=True,
    )
    seed: int = setting(0, "Fixes random crops, shapes, variations and samples.", **SEED)
    rotation: float = setting(
        0.0,
        "Also train on the image turned by a random angle of at most so many degrees, cut so that no corner is empty. "
        "5 is much for people and houses; 0 is off.",
        ge=0, le=45, step=1,
    )  # fmt: skip
    color_jitter: float = setting(
        0.0,
        "Also train on the image with brightness, contrast, saturation and hue changed at random by at most this "
        "share. 0.1 is seen at once; 0 is off. Not where colours belong to what is taught.",
        ge=0, le=1, step=0.05,
    )  # fmt: skip
    variations: int = setting(
        1, "How many images turned and recoloured at random are made of each, besides the image as it is.", ge=1, le=64
    )

    @property
    def wants_faces(self) -> bool:
        """Whether faces have to be found before an image can be cut."""
        return self.crop and self.crop_style == FACE

    @property
    def varies(self) -> bool:
        """Whether turned or recoloured images are made."""
        return bool(self.rotation or self.color_jitter)

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if self.variations > 1 and not self.varies:
            yield f"variations is {self.variations}, but rotation and color_jitter are 0, so all would be the same."
        if any(not 0 < r < 1e5 for r in self.resolutions):
            yield f"resolutions are {list(self.resolutions)}; each must be above 0, such as 512, 768, 1024."
        if any(not 1 / LONGEST <= a <= LONGEST for a in self.aspects):
            yield f"aspects are {list(self.aspects)}; each must lie between 1:8 and 8:1, such as 1:1, 3:2, 0.75."
        if self.crop and self.crop_aspect == RANDOM and not self.aspects:
            yield "crop_aspect is 'random' but aspects is empty; list the shapes to draw from, such as 1:1, 3:2, 2:3."
        if self.crops > 1 and not (self.crop and self.crop_style == RANDOM):
            yield f"crops is {self.crops}, which takes crop on and crop_style 'random'; else all are the same."
        if 0 < self.maximum < self.minimum:
            yield f"maximum {self.maximum:g} is below minimum {self.minimum:g}; no image could be used."
