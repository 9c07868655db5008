"""Any adapter as a plain LoRA: the nearest one of a given rank, by singular values, with its error."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from .dora import Weights, change, is_dora
from .parts import LowRank, Part, mapped


def as_plain(
    parts: dict[str, Part], rank: int, weights: Weights | None = None, device: torch.device | str = "cpu"
) -> tuple[dict[str, LowRank], float]:
    """LoRAs of at most ``rank``, and their error ``|approximation - dW| / |dW|`` over all Linears together.

    A LoRA of at most that rank stays as it is. Only DoRA needs ``weights``. The result is computed on ``device`` and
    returned on the CPU. Raises UserError for DoRA without ``weights``.
    """
    plain, missed, total = {}, 0.0, 0.0
    for name, part in parts.items():
        delta = _change(name, part, weights, device)
        fits = isinstance(part, LowRank) and not is_dora(part) and len(part.down) <= rank
        plain[name] = part if fits else low_rank(delta, rank)
        total += delta.square().sum().item()
        missed += 0.0 if fits else (plain[name].delta().to(delta) - delta).square().sum().item()
    return plain, (missed / total) ** 0.5 if total else 0.0


def _change(name: str, part: Part, weights: Weights | None, device: torch.device | str) -> Tensor:
    if not is_dora(part):
        return mapped(part, lambda tensor: tensor.to(device, torch.float32)).delta()
    if weights is None:
        raise UserError(f"The DoRA at {name} depends on the weights it sits on: give the base model too.")
    with weights(name) as weight:
        return change(part, weight.to(device))


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
