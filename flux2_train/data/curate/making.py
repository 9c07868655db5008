"""A data set made of images in memory, kept as files so that a run on it can be repeated."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...atomic import apart, move
from ...errors import UserError
from ...hashing import canonical_hash
from ...names import counted
from .. import sidecar
from ..images import digest_of

MOST = 100_000  # images
REFERENCES = "_references"  # what the name of the folder of references ends with


@dataclass(frozen=True)
class Made:
    """Images as they are kept: 8-bit arrays (H, W, 3), captions, masks (H, W) and references (H, W, 3).

    ``captions``, ``masks`` and ``references`` are empty or as long as ``images``.
    """

    images: tuple[np.ndarray, ...]
    captions: tuple[str, ...] = ()
    masks: tuple[np.ndarray, ...] = ()
    references: tuple[np.ndarray, ...] = ()

    @property
    def identity(self) -> str:
        """The hash of all of it."""
        arrays = [[(digest_of(np.ascontiguousarray(a).tobytes()), a.shape) for a in part]
                  for part in (self.images, self.masks, self.references)]  # fmt: skip
        return canonical_hash([arrays, self.captions])


def made(
    images: Sequence[Tensor], captions: Sequence[str], masks: Sequence[Tensor] = (), references: Sequence[Tensor] = ()
) -> Made:
    """What is kept of batches of images (B, H, W, 3), masks (B, H, W) and references, with values from 0 to 1.

    One text with as many lines as there are images is a caption for each; a single line is the caption of all.
    Raises UserError if the numbers do not fit each other.
    """
    pictures = _singles(images, 4)
    if not pictures or len(pictures) > MOST:
        raise UserError(f"Dataset Images got {counted(len(pictures), 'image')}; it takes 1 to {MOST}.")
    parts = [("masks", _singles(masks, 3)), ("references", _singles(references, 4))]
    for name, part in parts:
        if part and len(part) != len(pictures):
            raise UserError(
                f"Dataset Images got {counted(len(pictures), 'image')} and {len(part)} {name}: wire one for each "
                "image, in the same order."
            )
    return Made(pictures, _captions(list(captions), len(pictures)), *(part for _, part in parts))


def _singles(batches: Sequence[Tensor], dimensions: int) -> tuple[np.ndarray, ...]:
    """Every image of the batches in 8 bits; a fourth channel is left out."""
    found = []
    for batch in batches:
        batch = batch if batch.ndim == dimensions else batch[None]
        values = (batch.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        found += list(values[..., :3] if dimensions == 4 else values)
    return tuple(found)


def _captions(given: list[str], count: int) -> tuple[str, ...]:
    lines = given[0].splitlines() if len(given) == 1 else given
    lines = lines if len(given) > 1 else [line for line in lines if line.strip()]
    if len(lines) == 1:
        lines = lines * count
    if lines and len(lines) != count:
        raise UserError(
            f"Dataset Images got {counted(count, 'image')} and {counted(len(lines), 'caption')}: write one line for "
            "each image, or one for all."
        )
    return tuple(" ".join(line.split()) for line in lines)


def keep(values: Made, parent: Path, name: str) -> tuple[Path, Path | None]:
    """Write the images into a new folder below ``parent``; returns it and the folder of references, if there are any.

    The folder's name ends with a hash of the content, so the same images get the same folder: it is then left as it is,
    with what a person has changed in it. Raises UserError if it cannot be written.
    """
    folder = parent / f"{name}_{values.identity[:8]}"
    references = folder.with_name(folder.name + REFERENCES) if values.references else None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if references:
            _write(references, values.references, (), ())
        _write(folder, values.images, values.captions, values.masks)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); make room, or its folder writable.") from error
    return folder, references


def _write(folder: Path, images: Sequence[np.ndarray], captions: Sequence[str], masks: Sequence[np.ndarray]) -> None:
    """Write a folder whole, or leave the one that is there."""
    if folder.is_dir():
        return
    with apart(folder) as partial:
        inside = partial / "made"  # which is moved; its parent is removed
        (inside / sidecar.MASKS if masks else inside).mkdir(parents=True)
        for number, image in enumerate(images, 1):
            Image.fromarray(image).save(inside / f"{number:05}.png")
        for number, caption in enumerate(captions, 1):
            (inside / f"{number:05}.txt").write_bytes(caption.encode())
        for number, mask in enumerate(masks, 1):
            Image.fromarray(mask).save(inside / sidecar.MASKS / f"{number:05}.png")
        if masks:
            (inside / sidecar.NAME).write_bytes(sidecar.Sidecar(masks=True).text().encode())
        with contextlib.suppress(FileExistsError):  # another process has made the same
            move(inside, folder, new=True)
