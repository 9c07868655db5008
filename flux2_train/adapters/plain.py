"""Any adapter as a plain LoRA: the best one of a rank, by singular values, with its error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .parts import LowRank, Part

Change = Callable[[str, Part], Tensor]  # a Linear's whole change W' - W (out, in) by its name and part


def as_plain(parts: dict[str, Part], rank: int, change: Change) -> tuple[dict[str, LowRank], float]:
    """LoRAs of at most ``rank``, and their error ``|approximation - dW| / |dW|`` over all Linears together.

    A LoRA that fits already stays as it is. ``change`` is asked for the others; for all but DoRA it is the part's
    ``delta()``, DoRA's needs the weight it sits on (``host.lora.change``).
    """
    plain, missed, total = {}, 0.0, 0.0
    for name, part in parts.items():
        delta = change(name, part).float()
        fits = isinstance(part, LowRank) and part.magnitude is None and len(part.down) <= rank
        plain[name] = part if fits else low_rank(delta, rank)
        total += delta.square().sum().item()
        missed += 0.0 if fits else (plain[name].delta().to(delta) - delta).square().sum().item()
    return plain, (missed / total) ** 0.5 if total else 0.0


def low_rank(delta: Tensor, rank: int) -> LowRank:
    """The LoRA of ``rank`` nearest to ``delta`` (out, in), its singular values shared equally by both matrices.

    By randomised SVD (Halko et al. 2011) with a fixed seed, on the device of ``delta``; the result is on the CPU.
    """
    rank = min(rank, *delta.shape)
    with torch.random.fork_rng(devices=[delta.device] if delta.device.type == "cuda" else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(delta, q=min(2 * rank + 8, *delta.shape), niter=4)
    root = s[:rank].sqrt()
    return LowRank((v[:, :rank] * root).T.contiguous().cpu(), (u[:, :rank] * root).contiguous().cpu())
