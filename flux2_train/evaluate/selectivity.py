"""What the trigger changes against what everything else changes, for models that no scorer judges.

The velocity of the LoRA is compared with that of the base model at fixed noise and at the two noisy fixed times, where
captions tell most: ``taught`` is the mean squared difference with an image's own caption, ``leaked`` that with a
caption without the trigger. Selectivity is taught / leaked: 1 says that the LoRA acts the same whether the trigger is
there or not.

The caption without the trigger is the class caption, which the cache holds where there is a class word; without one it
is the empty caption, which every cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.captions import has_word
from ..data.dataset import Item
from ..data.samples import Sample, Samples
from ..events import Event, Phase, SelectivityMeasured
from ..flow.target import mean_squared_error
from ..train import processes
from ..train.trainer import Trainer
from .fixed_noise import NOISY, Predict, fixed_inputs

MOST = 4  # images, evenly chosen
SEEN = tuple(torch.tensor(NOISY).tolist())  # NOISY as the model gets them, in fp32
NO_TRIGGER = (
    "selectivity is not measured: no caption holds a trigger word, so nothing should change less than the rest. Set "
    "trigger on Dataset Folder"
)


@dataclass(frozen=True)
class Pair:
    """An image with its own caption and with one without the trigger, and the seed of its noise.

    Both are read from the caches each time: large embeds of several images need not lie in memory during a run.
    """

    samples: Samples
    index: int
    seed: int

    @property
    def item(self) -> Item:
        """The image."""
        return self.samples.items[self.index]

    def read(self, taught: bool) -> Sample:
        """The image with its own caption, or without the trigger."""
        sample = self.samples[self.index]
        if taught:
            return sample
        differs = self.item.class_caption != self.item.caption
        return replace(sample, embeds=sample.class_embeds if differs else self.samples.embeds[""])


def pairs(samples: Samples, chosen: Sequence[int], seed: int) -> list[Pair]:
    """Up to MOST of the ``chosen`` images whose caption has the trigger. The noise follows from their place there."""
    places = [place for place, index in enumerate(chosen) if _has_trigger(samples, samples.items[index])]
    spread = places[:: max(1, len(places) // MOST)][:MOST]
    return [Pair(samples, chosen[place], seed + place) for place in spread]


def _has_trigger(samples: Samples, item: Item) -> bool:
    trigger = samples.sources[item.source].trigger
    return bool(trigger) and has_word(item.caption, trigger)


class SelectivityMeter:
    """Measures a run's selectivity on ``pairs``. The base model's velocities are computed once and wait on the host.

    A round costs two predictions an image if validation has made the other two just before, else four; the first round
    four more. A training step takes about the time of three predictions.
    """

    def __init__(self, trainer: Trainer, pairs: list[Pair]):
        self.trainer, self.pairs = trainer, pairs
        self.base: dict[tuple[int, bool, float], Tensor] = {}
        self.just_seen: dict[tuple[int, float], Tensor] = {}  # by seed of the noise and time, with an image's caption

    def see(self, sample: Sample, seed: int, t: float, velocity: Tensor) -> None:
        """Keep a prediction of the validation, with the LoRA as it is now, if it need not be made again."""
        alone = self.trainer.accelerator.num_processes == 1  # several must all run the model equally often
        if alone and t in SEEN and any((p.seed, p.item) == (seed, sample.item) for p in self.pairs):
            self.just_seen[seed, t] = velocity

    def measure(self, predict: Predict, step: int) -> Iterator[Event]:
        """Measure after ``step`` steps, note it in the run's history and tell it."""
        trainer, sums = self.trainer, torch.zeros(2, dtype=torch.float64)
        count, at_once = len(self.pairs), trainer.accelerator.num_processes
        for done, (rows, weight) in enumerate(processes.shares(trainer.accelerator, count, 1), 1):
            yield Phase(f"measuring selectivity, image {min(done * at_once, count)} of {count}")
            for row in rows:
                changes = [self._change(predict, row, taught) for taught in (True, False)]
                sums += weight * torch.tensor(changes, dtype=torch.float64)
        self.just_seen.clear()
        taught, leaked = trainer.total_of(sums).tolist()
        trainer.history.selectivity[step] = taught, leaked
        yield SelectivityMeasured(step, taught, leaked)

    def _change(self, predict: Predict, row: int, taught: bool) -> float:
        """The mean squared difference of the LoRA's velocity to the base model's, mean over NOISY."""
        pair, changes = self.pairs[row], []
        sample = pair.read(taught)
        for t, _, x_t in fixed_inputs(sample.latent.float(), pair.seed, NOISY):
            key = row, taught, t.item()
            adapted = self.just_seen.get((pair.seed, t.item())) if taught else None
            if adapted is None:
                with self.trainer.weights_for("preview"):
                    adapted = predict(x_t, t, [sample]).cpu()
            if key not in self.base:
                with self.trainer.adapters.at_strength(0.0):
                    self.base[key] = predict(x_t, t, [sample]).cpu()
            changes.append(mean_squared_error(adapted, self.base[key]))
        return torch.cat(changes).mean().item()
