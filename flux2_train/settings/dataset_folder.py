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
from .crops import SEED, SKIP, CropSettings
from .text import Folders

TEXT_FILE, FILE_NAME, ONE_PROMPT, JSONL = "text file", "file name", "one prompt", "jsonl"
JOIN, CHOOSE = "join", "choose"
LOOSE, STRICT = "loose", "strict"
COMBINED = "combined"
MOST_REFERENCES = 10
MOST_TIMES = 100  # how often a marked picture is seen where others are seen once
Times = tuple[tuple[str, int], ...]  # (name relative to the folder, how often it is seen; 0 leaves it out)
MaskFolder = Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)]


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
