"""Warnings about a folder of images. None of them stops a run."""

from __future__ import annotations

from collections.abc import Iterator

from ..names import counted
from ..settings.dataset_folder import ONE_PROMPT, DatasetSettings
from . import captions as texts
from .dataset import Item
from .items import UsableImage
from .looks import alike
from .pairs import some

FEW = 5  # groups of pictures that look alike are named
LEAST_KEPT = 2 / 3  # of an image's area: a crop that keeps less is worth a warning


def advice(settings: DatasetSettings, images: list[UsableImage], items: tuple[Item, ...]) -> Iterator[str]:
    """One sentence for each thing worth knowing about sizes, captions, trigger and duplicates."""
    items = tuple(item for item in items if not item.view.crop.angle)  # turned ones lose a little more by themselves
    small = list(dict.fromkeys(i.path.name for i in items if _scaled_up(i)))
    if small:
        count = counted(len(small), "image is smaller than it is", "images are smaller than they are")
        yield f"{count} trained at and scaled up: {some(small)}"
    areas = {item.path: _area(item) for item in items}
    cropped = [p.path.name for p in images if areas[p.path] < LEAST_KEPT * p.facts.width * p.facts.height]
    if cropped:
        count = counted(len(cropped), "image loses more than a third of its", "images lose more than a third of their")
        yield f"{count} area to the crop: {some(cropped)}"
    yield from _on_captions(settings, images, {text for item in items for text in item.captions})
    yield from _duplicates(images)


def _area(item: Item) -> float:
    left, top, right, bottom = item.view.crop.box
    return (right - left) * (bottom - top)


def _scaled_up(item: Item) -> bool:
    left, top, right, bottom = item.view.crop.box
    return item.size[0] > (right - left) + 8 or item.size[1] > (bottom - top) + 8  # half a step of 16 is rounding


def _on_captions(settings: DatasetSettings, images: list[UsableImage], captions: set[str]) -> Iterator[str]:
    trigger = "" if settings.is_reg else settings.trigger
    if trigger and not any(texts.has_word(c, trigger) for c in captions):
        yield f"the trigger {trigger!r} is in no caption"
    if not settings.trigger and any(texts.PLACEHOLDER in c for p in images for c in p.captions):
        yield "captions contain [trigger] but trigger is empty"
    if len(images) > 1 and len(captions) == 1 and settings.captions != ONE_PROMPT:
        yield "all captions are equal"
    blank = [p.path.name for p in images if not any(p.captions)]
    if blank:
        yield f"{counted(len(blank), 'caption is', 'captions are')} empty: {some(blank)}"


def _duplicates(images: list[UsableImage]) -> Iterator[str]:
    same: dict[str, list[str]] = {}
    for image in images:
        same.setdefault(image.digest, []).append(image.path.name)
    for names in same.values():
        if len(names) > 1:
            yield f"the same image is there {len(names)} times: {some(names)}"
    different = list({image.digest: image for image in images}.values())
    groups = alike([image.facts.look for image in different])
    for group in groups[:FEW]:
        yield f"{len(group)} images look nearly the same: {some([different[place].path.name for place in group])}"
    if len(groups) > FEW:
        yield f"so do those of {counted(len(groups) - FEW, 'more group', 'more groups')}"
