"""The cards that ComfyUI sees, and those of them that a run uses."""

from __future__ import annotations

import comfy.model_management
import torch

from ...errors import UserError
from ...names import shown
from ...settings.memory import AUTO
from .machine import free_memory


def seen() -> list[torch.device]:
    """All cards that ComfyUI sees, of the kind that it computes on."""
    own = comfy.model_management.get_torch_device()
    if own.type not in ("cuda", "xpu", "npu", "mlu"):  # others are one device
        return [own]
    return [torch.device(own.type, number) for number in range(torch.get_device_module(own.type).device_count())]


def chosen(cards: str, own: torch.device) -> tuple[torch.device, ...]:
    """The cards that the setting ``cards`` of Memory means, with ComfyUI's ``own`` first: the model itself lies there.

    Raises UserError for cards that are not there.
    """
    if cards == "1":
        return (own,)
    there = seen()
    if "," in cards:
        return _listed(cards, own, there)
    others = [card for card in there if card != own]
    count = len(there) if cards == AUTO else int(cards)
    if count > len(there):
        raise UserError(
            f"cards of Memory is {count}, but ComfyUI sees {_named(there)}: set it to 'auto', or {len(there)} at most."
        )
    return (own, *others[: count - 1])


def _listed(cards: str, own: torch.device, there: list[torch.device]) -> tuple[torch.device, ...]:
    numbers = [int(number) for number in cards.split(",")]
    by_number = {card.index or 0: card for card in there}
    absent = [number for number in numbers if number not in by_number]
    if absent:
        raise UserError(
            f"cards of Memory is {shown(cards)!r}, but ComfyUI sees {_named(there)}: there is no card {absent[0]}."
        )
    listed = [by_number[number] for number in numbers]
    if own not in listed:
        raise UserError(
            f"cards of Memory is {shown(cards)!r}, but ComfyUI itself computes on card {own.index or 0}: add it to the "
            "list, or start ComfyUI with --cuda-device for another one."
        )
    return (own, *(card for card in listed if card != own))


def _named(there: list[torch.device]) -> str:
    names = ", ".join(map(str, there))
    return f"one device ({names})" if len(there) == 1 else f"{len(there)} cards ({names})"


def free(cards: tuple[torch.device, ...], limit: float = 0.0) -> list[float]:
    """Free bytes of each card, at most ``limit`` of each if that is not 0."""
    rooms = [float(free_memory(card)) for card in cards]
    return [min(room, limit) for room in rooms] if limit else rooms
