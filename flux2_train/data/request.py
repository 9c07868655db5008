"""What is asked of one folder: every choice of Dataset Folder and its option nodes, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from PIL import ImageColor

from ..canonical import canonical_hash
from ..errors import UserError
from .captions import MOST_REFERENCES, SOURCES, TEXT_FILE, CaptionOptions
from .crops import REFUSE, SKIP, CropOptions
from .dataset import Source
from .masks import MaskOptions
from .pairs import STRICT, ReferenceOptions


@dataclass(frozen=True)
class Request:
    """Everything asked of one folder, as the node or the command line says it."""

    folder: Path
    resolution: int
    captions: str = TEXT_FILE
    prompt: str = ""
    trigger: str = ""
    class_word: str = ""
    references: tuple[Path, ...] = ()
    bad_files: str = SKIP
    subfolders: bool = True
    background: str = "white"
    max_samples: int = 0
    source: Source = field(default_factory=Source)
    caption: CaptionOptions = field(default_factory=CaptionOptions)
    crop: CropOptions = field(default_factory=CropOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)

    def __post_init__(self):
        if self.captions not in SOURCES or self.bad_files not in (SKIP, REFUSE):
            raise UserError(f"captions is {self.captions!r} and bad_files {self.bad_files!r}; choose from "
                            f"{', '.join(SOURCES)} and {SKIP}, {REFUSE}.")  # fmt: skip
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise UserError(
                f"background is {self.background!r}, which is no colour; write white or #ffffff."
            ) from error
        if len(self.references) > MOST_REFERENCES:
            raise UserError(
                f"{len(self.references)} reference folders are named; at most {MOST_REFERENCES} can be used."
            )
        if self.reference.kind == STRICT and self.reference.resolution:
            raise UserError("reference_resolution is set, but strict references have their image's size; set it to 0.")

    @property
    def identity(self) -> str:
        """The same for the same settings, whatever the files hold."""
        return canonical_hash(repr(self))
