"""Settings of one folder of images: the node Dataset Folder and its four option nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ..hashing import canonical_hash
from ..names import shown
from .base import RARE, Settings, plain, setting, settings
from .text import Folders, Ratios

TEXT_FILE, FILE_NAME, ONE_PROMPT, JSONL = "text file", "file name", "one prompt", "jsonl"
JOIN, CHOOSE = "join", "choose"
PIXEL_AREA, AREA, PIXEL = "pixel_area", "area", "pixel"
CLOSEST, PRESERVE, SQUARE, RANDOM = "closest", "preserve", "square", "random"
CENTER, CORNER, FACE = "center", "corner", "face"
SKIP, REFUSE = "skip", "refuse"
UPSCALE, DOWNSCALE = "upscale", "downscale"
EACH, NEAREST = "each", "nearest"
LOOSE, STRICT = "loose", "strict"
COMBINED = "combined"
LONGEST = 8.0  # images longer than 8:1 are cropped to 8:1, or reported if crop is off
MOST_REFERENCES = 10
MOST_TIMES = 100  # how often a marked picture is seen where others are seen once
Times = tuple[tuple[str, int], ...]  # (name relative to the folder, how often it is seen; 0 leaves it out)
MaskFolder = Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)]
SEED = {"ge": 0, "le": 2**31 - 1, "advanced": True, "control": False}


@settings
class CaptionSettings(Settings):
    """How captions are used: several for one image, shuffled parts, dropout, the trigger."""

    several: Literal["join", "choose"] = setting(
        JOIN, "Several lines in one caption file: joined to one caption, or one of them chosen per step."
    )
    dropout: float = setting(
        0.0,
        "How often a step sees the dropout caption instead of the image's. 0.05 to 0.1 helps guidance later; 0 is off.",
        ge=0, le=1, step=0.01,
    )  # fmt: skip
    dropout_caption: str = setting(
        "",
        "The caption that stands in when one is dropped. Empty is usual; '[trigger]' keeps the trigger word alone.",
    )
    shuffle: int = setting(
        0,
        "Into how many orders the parts of a caption are shuffled, one of which is drawn per step. Each is encoded "
        "once. For tags, not for sentences; 0 is off.",
        ge=0, le=100,
    )  # fmt: skip
    keep_tokens: int = setting(
        0, "How many parts at the start of a caption stay in their place when shuffled.", ge=0, le=100
    )
    separator: str = setting(",", "What stands between the parts of a caption that are shuffled.")
    prepend_trigger: bool = setting(
        True,
        "Put the trigger in front of captions that contain neither it nor [trigger]. Turn off to place it only where "
        "you wrote it.",
    )
    seed: int = setting(0, "Fixes the orders that shuffling makes.", **SEED)
    tag_dropout: float = setting(
        0.0,
        "How often a part of a caption is left out, drawn for each part in each of the 'shuffle' orders. For tags; 0 "
        "is off, 0.1 usual.",
        ge=0, le=0.95, step=0.05,
    )  # fmt: skip
    keep_order: bool = setting(
        False, "With tag_dropout: parts stay in their order, and 'shuffle' says how many variations there are."
    )

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if self.shuffle and not self.separator:
            yield "shuffle is on but separator is empty; captions are usually split at ','."
        if self.tag_dropout and not self.shuffle:
            yield "tag_dropout is on but shuffle is 0; set it to the number of variations of each caption, such as 10."


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


@settings
class MaskSettings(Settings):
    """Masks from ``folder`` (white counts) or from the images' own ``alpha``; no masks where neither is set."""

    folder: MaskFolder = setting(None, "Folder of masks with the images' names. An image without a mask counts fully.")
    alpha: bool = setting(
        False, "Take the images' own transparency as masks: what is opaque counts. Leave the folder empty."
    )
    invert: bool = setting(False, "Turn masks around, so that black (or what is transparent) counts.")
    minimum: float = setting(
        0.0, "How much the rest still counts. 0.1 keeps backgrounds from falling apart; 0 ignores them.",
        ge=0, le=1, step=0.05,
    )  # fmt: skip

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if self.folder and self.alpha:
            yield "Masks come from the folder of Mask Options or from alpha, not from both: empty it or turn alpha off."


@settings
class ReferenceSettings(Settings):
    """How the references of training edits are treated."""

    kind: Literal["loose", "strict"] = setting(
        LOOSE,
        "Loose references keep their own shape; strict ones share crop, size and flips of their image, to which they "
        "must be aligned.",
    )
    resolution: int = setting(
        0, "Loose references are scaled to about this many pixels squared; 0 takes their image's size.",
        ge=0, le=4096, step=16,
    )  # fmt: skip
    sampling: Literal["combined", "random"] = setting(
        COMBINED, "With several reference folders: give all references at once, or draw one of them per step."
    )
    dropout: float = setting(
        0.0, "How often a step sees no references, so that the model also learns without them; 0 is off.",
        ge=0, le=1, step=0.01,
    )  # fmt: skip

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if self.kind == STRICT and self.resolution:
            yield "resolution of Reference Options is set, but strict references have their image's size; set it to 0."


@settings
class DatasetSettings(Settings):
    """One folder of images to train on, and everything that is set about it.

    ``pictures`` are the pictures that are left out or seen more often, as the job of a run records them; None takes
    what flux2_dataset.json in the folder says. It is a state of the folder's files and no widget.
    """

    folder: Path = setting(
        Path("robot"),
        "Folder of images: a name inside ComfyUI's input folder, a full path, or 'robot' for the example that comes "
        "with the pack. 10 to 30 varied images make a good LoRA.",
    )
    captions: Literal["text file", "file name", "one prompt", "jsonl"] = setting(
        TEXT_FILE,
        "Where captions come from: a .txt, .caption or .json of the same name beside each image (best), the image's "
        "file name, one prompt for all, or a .jsonl file in the folder.",
        advanced=True,
    )
    prompt: str = setting(
        "",
        "The caption of every image with 'one prompt', and of images without a .txt otherwise.",
        multiline=True, advanced=True,
    )  # fmt: skip
    resolution: int = setting(
        1024,
        "Images are scaled to about this many pixels squared, keeping their shape. 1024 is full quality, 512 trains "
        "about four times faster, nano needs 128.",
        ge=64, le=4096, step=16,
    )  # fmt: skip
    repeats: int = setting(
        1, "How often each image is seen per epoch. Matters only when you count epochs; 1 is good.",
        ge=1, le=1000, advanced=True,
    )  # fmt: skip
    trigger: str = setting(
        "",
        "The word that calls up what you train, such as 'zbot'. Replaces [trigger] in captions and is put in front of "
        "captions that lack it. Choose one that means nothing yet.",
    )
    class_word: str = setting(
        "",
        "What the subject is in plain words, such as 'robot'. Preservation keeps the model's idea of this word as it "
        "was. Needed only with preservation.",
    )
    references: Folders = setting(
        (),
        "For training edits: a folder with the picture before the edit under each image's name. Captions then say what "
        "to change. Several folders are separated by ';'. Leave empty otherwise.",
        **RARE,
    )
    bad_files: Literal["skip", "refuse"] = setting(
        SKIP,
        "What to do with files that are broken or no usable image: leave them out and say so, or stop and name them.",
        **RARE,
    )
    subfolders: bool = setting(True, "Also take images from folders inside the folder.", **RARE)
    background: str = setting(
        "white", "The colour put behind images that are transparent somewhere: a name or #rrggbb.", **RARE
    )
    max_samples: int = setting(
        0, "Take at most this many of the images, always the same ones; 0 takes all.", ge=0, le=10_000_000, **RARE
    )
    probability: float = setting(
        1.0,
        "The share of this folder's images that an epoch sees, others each time: 0.25 sees all in four epochs. "
        "Balances chained folders.",
        ge=0.001, le=1, step=0.01, **RARE,
    )  # fmt: skip
    loss_weight: float = setting(
        1.0, "How much the loss of this folder's images counts; 1 is normal.", ge=0, le=100, step=0.05, **RARE
    )
    is_reg: bool = setting(
        False,
        "These are regularisation images of the class: they get no trigger and never share a batch with others.",
        **RARE,
    )
    base_target: bool = setting(
        False,
        "Train regularisation images towards what the base model predicts instead of the image, which only keeps what "
        "it knows.",
        **RARE,
    )
    balance: float = setting(
        0.0,
        "Balances chained folders: in an epoch their images come as often as these weights are to each other, 2 twice "
        "as often as 1, however many a folder has. 0 is off.",
        ge=0, le=1000, step=0.5, **RARE,
    )  # fmt: skip
    batch: int = setting(
        0,
        "How many of this folder's images share a batch; 0 takes LoRA Trainer's batch. Smaller for a folder of larger "
        "images.",
        ge=0, le=256, **RARE,
    )  # fmt: skip
    timestep_offset: float = setting(
        0.0,
        "Moves the times these images are trained at, on the logit scale: above 0 towards noise and composition, below "
        "0 towards detail. 0.5 is much.",
        ge=-8, le=8, step=0.05, **RARE,
    )  # fmt: skip
    pictures: Times | None = None
    caption_options: CaptionSettings = field(default_factory=CaptionSettings)
    crop_options: CropSettings = field(default_factory=CropSettings)
    mask_options: MaskSettings = field(default_factory=MaskSettings)
    reference_options: ReferenceSettings = field(default_factory=ReferenceSettings)

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if not _is_colour(self.background):
            yield f"background is {self.background!r}, which is no colour; write white or #ffffff."
        if len(self.references) > MOST_REFERENCES:
            yield f"references names {len(self.references)} folders; at most {MOST_REFERENCES} can be used."
        if self.balance and (self.probability != 1 or self.repeats != 1):
            yield "balance is on, which says how often images come; set repeats and probability to 1."
        if self.base_target and not self.is_reg:
            yield (
                "base_target is on but is_reg is off: nothing would be learned from these images; turn is_reg on for "
                "regularisation images, or base_target off."
            )
        wrong = next((name for name, times in self.pictures or () if not 0 <= times <= MOST_TIMES), None)
        if wrong is not None:
            yield f"pictures has {shown(wrong)!r} with another number than 0 to {MOST_TIMES}."

    @property
    def identity(self) -> str:
        """A hash of the settings; it does not depend on the files, nor on which of them are left out."""
        return canonical_hash({name: value for name, value in plain(self).items() if name != "pictures"})


def _is_colour(text: str) -> bool:
    from PIL import ImageColor  # here, because a list of commands needs no pictures

    try:
        ImageColor.getrgb(text)
    except ValueError:
        return False
    return True
