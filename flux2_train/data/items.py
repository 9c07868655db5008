"""From a usable image to the items that are trained on: its captions, crops, references and mask are decided here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..settings.crops import PRESERVE, CropSettings
from ..settings.dataset_folder import STRICT, DatasetSettings
from . import captions as texts
from . import crops
from .crops import Crop
from .dataset import Item, Mask, Source, View
from .images import Facts

Known = tuple[str, Facts]  # content hash and facts of a file


@dataclass(frozen=True)
class UsableImage:
    """One usable image with what belongs to it; ``captions`` is None where the image has none of its own."""

    path: Path
    digest: str
    facts: Facts
    captions: list[str] | None
    references: tuple[Path, ...] = ()
    mask: Path | None = None
    repeats: int = 1

    @property
    def partners(self) -> tuple[Path, ...]:
        """References and mask."""
        return (*self.references, *([self.mask] if self.mask else []))


def source_of(settings: DatasetSettings) -> Source:
    """A folder's part in the data set, as its settings say."""
    captions, references = settings.caption_options, settings.reference_options
    dropout = captions.dropout_caption
    text, class_text = caption_pair(dropout, settings) if dropout else ("", "")
    return Source(
        folder=settings.folder,
        repeats=settings.repeats,
        probability=settings.probability,
        weight=settings.loss_weight,
        is_reg=settings.is_reg,
        base_target=settings.base_target,
        timestep_offset=settings.timestep_offset,
        balance=settings.balance,
        batch=settings.batch,
        trigger=settings.trigger,
        class_word=settings.class_word,
        caption_dropout=captions.dropout,
        dropout_caption=text,
        dropout_class_caption=class_text,
        reference_dropout=references.dropout,
        reference_sampling=references.sampling,
    )


def caption_pair(caption: str, settings: DatasetSettings) -> tuple[str, str]:
    """(caption, class caption) with trigger and class word in their places; regularisation images have no trigger."""
    if settings.is_reg:
        text = texts.with_trigger(caption, settings.class_word, prepend=False)
        return text, text
    prepend = settings.caption_options.prepend_trigger
    text = texts.with_trigger(caption, settings.trigger, prepend=prepend)
    if not settings.class_word:
        return text, text
    return text, texts.with_trigger(caption, settings.trigger, settings.class_word, prepend)


def items_of(
    image: UsableImage, settings: DatasetSettings, partners: Mapping[Path, Known], face: crops.Point | None = None
) -> list[Item]:
    """One item per crop, size, variation and flip; ``face`` is the point that crop style 'face' centres on."""
    variants = texts.variants(image.captions, settings.caption_options, image.digest, image.path.name)
    pairs = list(dict.fromkeys(caption_pair(variant, settings) for variant in variants))
    return [
        Item(
            _view(image.path, image.digest, image.facts, crop, settings),
            tuple(text for text, _ in pairs),
            tuple(class_text for _, class_text in pairs),
            tuple(_reference(path, *partners[path], crop, image.facts, settings) for path in image.references),
            _mask(image, partners, crop, settings),
            repeats=image.repeats,
        )
        for crop in crops.crops(*image.facts.size, image.digest, settings.resolution, settings.crop_options, face)
    ]


def _view(path: Path, digest: str, facts: Facts, crop: Crop, settings: DatasetSettings) -> View:
    return View(path, digest, crop, settings.background if facts.alpha else "")


def _reference(path: Path, digest: str, facts: Facts, crop: Crop, image: Facts, settings: DatasetSettings) -> View:
    if settings.reference_options.kind == STRICT:
        return _view(path, digest, facts, crop.on(*image.size, facts.size), settings)
    side = settings.reference_options.resolution or (crop.size[0] * crop.size[1]) ** 0.5
    own = crops.crops(*facts.size, digest, side, CropSettings(crop_aspect=PRESERVE))[0]
    alike = replace(own, flip_x=crop.flip_x, flip_y=crop.flip_y, colours=crop.colours)
    return _view(path, digest, facts, alike, settings)


def _mask(image: UsableImage, partners: Mapping[Path, Known], crop: Crop, settings: DatasetSettings) -> Mask | None:
    if image.mask is None:
        return None
    digest, facts = partners[image.mask]
    options = settings.mask_options
    view = View(image.mask, digest, replace(crop.on(*image.facts.size, facts.size), colours=()))
    return Mask(view, options.alpha, options.invert, options.minimum)
