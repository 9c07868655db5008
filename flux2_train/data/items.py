"""From a picture that can be used to the items that are trained on: captions, crops, references and mask decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..settings.dataset import PRESERVE, STRICT, CropSettings, DatasetSettings
from . import captions as texts
from . import crops
from .crops import Crop
from .dataset import Item, Mask, Source, View
from .images import Facts

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


def source_of(request: DatasetSettings) -> Source:
    """A folder's part in the data set, as its request says."""
    captions, references = request.caption_options, request.reference_options
    dropout = captions.dropout_caption
    text, class_text = said(dropout, request) if dropout else ("", "")
    return Source(
        folder=request.folder,
        repeats=request.repeats,
        probability=request.probability,
        weight=request.loss_weight,
        is_reg=request.is_reg,
        base_target=request.base_target,
        timestep_offset=request.timestep_offset,
        trigger=request.trigger,
        class_word=request.class_word,
        caption_dropout=captions.dropout,
        dropout_caption=text,
        dropout_class_caption=class_text,
        reference_dropout=references.dropout,
        reference_sampling=references.sampling,
    )


def said(caption: str, request: DatasetSettings) -> tuple[str, str]:
    """(caption, class caption) with trigger and class word in their places; regularisation images have no trigger."""
    if request.is_reg:
        text = texts.with_trigger(caption, request.class_word, prepend=False)
        return text, text
    prepend = request.caption_options.prepend_trigger
    text = texts.with_trigger(caption, request.trigger, prepend=prepend)
    if not request.class_word:
        return text, text
    return text, texts.with_trigger(caption, request.trigger, request.class_word, prepend)


def items_of(
    picture: Picture, request: DatasetSettings, partners: Mapping[Path, Known], face: crops.Point | None = None
) -> list[Item]:
    """One item per crop, size and flip; ``face`` is the point to centre on where the crop style asks for one."""
    pairs = [said(c, request) for c in texts.variants(picture.captions, request.caption_options, picture.digest)]
    pairs = list(dict.fromkeys(pairs))
    return [
        Item(
            _view(picture.path, picture.digest, picture.facts, crop, request),
            tuple(text for text, _ in pairs),
            tuple(class_text for _, class_text in pairs),
            tuple(_reference(path, *partners[path], crop, picture.facts, request) for path in picture.references),
            _mask(picture, partners, crop, request),
        )
        for crop in crops.crops(*picture.facts.size, picture.digest, request.resolution, request.crop_options, face)
    ]


def _view(path: Path, digest: str, facts: Facts, crop: Crop, request: DatasetSettings) -> View:
    return View(path, digest, crop, request.background if facts.alpha else "")


def _reference(path: Path, digest: str, facts: Facts, crop: Crop, image: Facts, request: DatasetSettings) -> View:
    if request.reference_options.kind == STRICT:
        return _view(path, digest, facts, crop.on(*image.size, facts.size), request)
    side = request.reference_options.resolution or (crop.size[0] * crop.size[1]) ** 0.5
    own = crops.crops(*facts.size, digest, side, CropSettings(crop_aspect=PRESERVE))[0]
    return _view(path, digest, facts, replace(own, flip_x=crop.flip_x, flip_y=crop.flip_y), request)


def _mask(picture: Picture, partners: Mapping[Path, Known], crop: Crop, request: DatasetSettings) -> Mask | None:
    if picture.mask is None:
        return None
    digest, facts = partners[picture.mask]
    options = request.mask_options
    view = View(picture.mask, digest, crop.on(*picture.facts.size, facts.size))
    return Mask(view, options.alpha, options.invert, options.minimum)
