"""Which training picture a preview is nearest to, and whether it is a copy of it.

The distance of two pictures is that of their latents, averaged over a grid of GRID x GRID places, so that pictures of
any size can be compared. It is divided by the usual distance of the set: the median, over the training pictures, of the
distance to the nearest other one. A preview is called a copy if

* its distance to the nearest training picture is below NEAR, and
* the base model's picture of the same prompt and noise was more than twice as far from that one: it did not come there
  without the training.

Carlini et al. 2023 (arXiv 2301.13188) call a generated picture extracted by the same kind of ratio, with the same 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..data.samples import Samples
from ..events import LOWER_RATE, Nearest, PreviewPicture, Warned
from ..names import counted, shown

GRID = 8
NEAR = 0.5
FEWEST = 4  # training pictures; of fewer, no distance is usual
MOST = 4000  # training pictures that are compared, evenly chosen: 128 MB


class TrainingPictures:
    """The training pictures of a run, as ``nearest`` compares them. They are read from the cache at the first call."""

    def __init__(self, samples: Samples):
        self.samples = samples
        self.known: Tensor | None = None  # (N, 128 GRID^2)
        self.usual = 0.0

    def nearest(self, painted: Tensor, base: Tensor | None = None) -> Nearest | None:
        """The picture that the latents ``painted`` (1, 128, h, w) are nearest to; None if too few are known.

        ``base`` are the latents that the base model painted from the same noise.
        """
        items = self._items()
        if self.known is None:
            self._read(items)
        if not self.usual:
            return None
        distances = torch.cdist(_placed(painted), self.known)[0] / self.usual
        place = int(distances.argmin())
        distance = distances[place].item()
        came = base is None or 2 * distance < (torch.cdist(_placed(base), self.known)[0, place] / self.usual).item()
        return Nearest(items[place].path.name, distance, distance < NEAR and came)

    def _items(self) -> tuple:
        items = self.samples.items
        return items[:: -(-len(items) // MOST) or 1]

    def _read(self, items: tuple) -> None:
        self.known = torch.cat([_placed(self.samples.latents[item.view]) for item in items] or [torch.empty(0, 1)])
        files = [item.view.digest for item in items]
        if len(set(files)) >= FEWEST:
            number = {name: count for count, name in enumerate(dict.fromkeys(files))}
            self.usual = _usual_distance(self.known, torch.tensor([number[name] for name in files]))


def _usual_distance(known: Tensor, files: Tensor) -> float:
    """The median distance to the nearest picture of another file; 0 if most pictures are there twice."""
    distances = torch.cdist(known, known)
    return distances.masked_fill(files[:, None] == files, torch.inf).amin(1).median().item()


def _placed(latents: Tensor) -> Tensor:
    return adaptive_avg_pool2d(latents.detach().float().cpu(), GRID).flatten(1)


def warnings_of(warned: set[tuple[int, str]], step: int, pictures: Sequence[PreviewPicture]) -> Iterator[Warned]:
    """A warning for each of ``pictures``, painted after ``step`` steps, that is a copy.

    ``warned`` are (number of the prompt, copied file) of earlier warnings; the new ones are added.
    """
    for picture in pictures:
        nearest = picture.nearest
        if nearest and nearest.copied and (picture.number, nearest.name) not in warned:
            warned.add((picture.number, nearest.name))
            yield Warned(
                f"Preview {picture.number} ({shown(picture.label, 40)}) copies the training picture "
                f"{shown(nearest.name)} after {counted(step, 'step')}: it is {nearest.distance:.2f} of the usual "
                "distance between training pictures away. The run memorises: take an earlier step, add pictures, or "
                "lower repeats or the learning rate.",
                (LOWER_RATE,),
                (nearest.name,),
            )
