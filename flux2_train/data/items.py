"""From a picture that can be used to the items that are trained on: captions, crops, references and mask decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from . import captions as texts
from . import crops
from .crops import Crop, CropOptions
from .dataset import Item, Mask, Source, View
from .images import Facts
from .pairs import STRICT
from .request import Request

Known = tuple[str, Facts]  # content hash and what is known of the content


@dataclass(frozen=True)
class Picture:
    """One usable image with what belongs to it; ``captions`` is None where nothing says one."""

    path: Path
    digest: str
    facts: Facts
    captions: list[str] | None
    references: tuple[Path, ...] = ()
    mask: Path | None = None

    @property
    def partners(self) -> tuple[Path, ...]:
        """References and mask."""
        return (*self.references, *([self.mask] if self.mask else []))


def source_of(request: Request) -> Source:
    """A folder's part in the data set, as its request says."""
    dropout = request.caption.dropout_caption
    text, class_text = said(dropout, request) if dropout else ("", "")
    return replace(
        request.source,
        folder=request.folder,
        trigger=request.trigger,
        class_word=request.class_word,
        caption_dropout=request.caption.dropout,
        dropout_caption=text,
        dropout_class_caption=class_text,
        reference_dropout=request.reference.dropout,
        reference_sampling=request.reference.sampling,
    )


def said(caption: str, request: Request) -> tuple[str, str]:
    """(caption, class caption) with trigger and class word in their places; regularisation images have no trigger."""
    if request.source.is_reg:
        text = texts.with_trigger(caption, request.class_word, prepend=False)
        return text, text
    prepend = request.caption.prepend_trigger
    text = texts.with_trigger(caption, request.trigger, prepend=prepend)
    if not request.class_word:
        return text, text
    return text, texts.with_trigger(caption, request.trigger, request.class_word, prepend)


def items_of(
    picture: Picture, request: Request, partners: Mapping[Path, Known], face: crops.Point | None = None
) -> list[Item]:
    """One item per crop, size and flip; ``face`` is the point to centre on where the crop style asks for one."""
    pairs = [said(c, request) for c in texts.variants(picture.captions, request.caption, picture.digest)]
    pairs = list(dict.fromkeys(pairs))
    return [
        Item(
            _view(picture.path, picture.digest, picture.facts, crop, request),
            tuple(text for text, _ in pairs),
            tuple(class_text for _, class_text in pairs),
            tuple(_reference(path, *partners[path], crop, picture.facts, request) for path in picture.references),
            _mask(picture, partners, crop, request),
        )
        for crop in crops.crops(*picture.facts.size, picture.digest, request.resolution, request.crop, face)
    ]


def _view(path: Path, digest: str, facts: Facts, crop: Crop, request: Request) -> View:
    return View(path, digest, crop, request.background if facts.alpha else "")


def _reference(path: Path, digest: str, facts: Facts, crop: Crop, image: Facts, request: Request) -> View:
    if request.reference.kind == STRICT:
        return _view(path, digest, facts, crop.on(*image.size, facts.size), request)
    side = request.reference.resolution or (crop.size[0] * crop.size[1]) ** 0.5
    own = crops.crops(*facts.size, digest, side, CropOptions(aspect=crops.PRESERVE))[0]
    return _view(path, digest, facts, replace(own, flip_x=crop.flip_x, flip_y=crop.flip_y), request)


def _mask(picture: Picture, partners: Mapping[Path, Known], crop: Crop, request: Request) -> Mask | None:
    if picture.mask is None:
        return None
    digest, facts = partners[picture.mask]
    options = request.mask
    view = View(picture.mask, digest, crop.on(*picture.facts.size, facts.size))
    return Mask(view, options.alpha, options.invert, options.minimum)
