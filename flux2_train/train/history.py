"""What a run has measured: its loss curve, and its mean error by time t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

SMOOTHING = 0.95
LISTS = ("losses", "smoothed", "preservation", "seconds", "rates")
BANDS = 10  # equal parts of the interval 0..1 of t


def tally(t: Tensor, errors: Tensor) -> Tensor:
    """(2, BANDS): for each band of t, how many samples with times ``t`` (B,) fall into it, and their summed errors."""
    band = (t.detach().cpu() * BANDS).long().clamp(max=BANDS - 1)
    counts = torch.bincount(band, minlength=BANDS).double()
    return torch.stack((counts, torch.bincount(band, errors.detach().cpu().double(), minlength=BANDS)))


@dataclass(frozen=True)
class Measured:
    """One step: the velocity's unweighted mean squared error, the preservation loss, and the result of ``tally``."""

    loss: float
    preservation: float
    bands: Tensor

    @classmethod
    def of(cls, sums: Tensor) -> Measured:
        """From (2 + 2 BANDS,): loss, preservation and the flattened tally."""
        return cls(sums[0].item(), sums[1].item(), sums[2:].view(2, BANDS).cpu())


@dataclass(frozen=True)
class Unread:
    """What one pass has measured, still on the device: reading it would make the processor wait for the device.

    ``loss`` and ``preservation`` () are sums over samples that weigh ``weight`` each; ``t`` and ``errors`` (B,) are the
    samples' times and errors, both empty where nothing was predicted for the image's own caption.
    """

    weight: float
    loss: Tensor
    preservation: Tensor
    t: Tensor
    errors: Tensor


def read(passes: list[Unread], *others: Tensor) -> tuple[Tensor, ...]:
    """A step's numbers on the CPU, in a single transfer, in which alone the processor waits for the device.

    The first are the sums over its passes for ``Measured.of`` (2 + 2 BANDS,), in float64; ``others`` (n,) come as they
    are.
    """
    flat = [torch.cat((p.loss[None], p.preservation[None], p.t, p.errors)) for p in passes]
    all_of_them = [*flat, *(other.to(flat[0]) for other in others)]
    values = torch.cat(all_of_them).cpu().split([len(each) for each in all_of_them])
    return _sums(passes, values[: len(passes)]), *values[len(passes) :]


def _sums(passes: list[Unread], values: Sequence[Tensor]) -> Tensor:
    sums = torch.zeros(2 + 2 * BANDS, dtype=torch.float64)
    for one, own in zip(passes, values, strict=True):
        count = len(one.errors)
        bands = tally(own[2 : 2 + count], own[2 + count :]) if one.weight else torch.zeros(2, BANDS)
        sums += torch.cat((one.weight * own[:2].double(), bands.flatten().double()))
    return sums


@dataclass
class History:
    """What a run has measured so far."""

    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    preservation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    bands: Tensor = field(default_factory=lambda: torch.zeros(2, BANDS, dtype=torch.float64))
    validation: dict[int, float] = field(default_factory=dict)
    selectivity: dict[int, tuple[float, float]] = field(default_factory=dict)  # (taught, leaked) by step

    def add(self, loss: float, preservation: float, seconds: float, rate: float, bands: Tensor) -> None:
        """Append one step. The running mean is a plain mean over the first steps, so that it starts unbiased."""
        weight = max(1 - SMOOTHING, 1 / (len(self.losses) + 1))
        last = self.smoothed[-1] if self.smoothed else loss
        self.losses.append(loss)
        self.smoothed.append(last + weight * (loss - last))
        self.preservation.append(preservation)
        self.seconds.append(seconds)
        self.rates.append(rate)
        self.bands += bands

    def state_dict(self) -> dict:
        """What ``load_state_dict`` takes."""
        lists = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in LISTS}
        measured = {"validation": dict(self.validation), "selectivity": dict(self.selectivity)}
        return {**lists, "bands": self.bands, **measured}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state of ``state_dict``."""
        for name in LISTS:
            setattr(self, name, state[name].tolist())
        self.bands, self.validation = state["bands"].clone(), dict(state["validation"])
        self.selectivity = dict(state.get("selectivity", {}))  # checkpoints of older versions lack it

    def by_band(self) -> dict[str, float]:
        """The mean error of every band of t in which a sample fell, by the band's name."""
        counts, sums = self.bands
        return {f"{i / BANDS:g}-{(i + 1) / BANDS:g}": (sums[i] / counts[i]).item() for i in range(BANDS) if counts[i]}
