"""What is done about a card that is full, where the card's own answers have to be given by the test."""

import sys

import comfy.model_management
import comfy_aimdo.model_vbar
import pytest
import torch

from flux2_train.host.sampling import painter
from flux2_train.host.system import machine, memory, rates
from flux2_train.planning.work import Machine

CARD, GB = torch.device("cuda", 0), 10**9


@pytest.mark.parametrize("platform, release, free, expected", [
    ("win32", "10", 0.1 * GB, True),
    ("win32", "10", 3 * GB, False),  # a launch-bound step on a card with room
    ("linux", "6.6.87.2-microsoft-standard-WSL2", 0.1 * GB, True),
    ("linux", "6.1.0-18-amd64", 0.1 * GB, False),  # there the allocation fails instead
])  # fmt: skip
def test_memory_spills_on_a_full_card_under_windows(monkeypatch, platform, release, free, expected):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(memory.platform, "release", lambda: release)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 24 * GB))
    assert memory.can_spill(CARD) == expected
    assert not memory.can_spill(torch.device("cpu"))


def test_what_comfyui_keeps_free_is_not_planned_with(monkeypatch):
    """0.7 GB on Windows, which nobody asked for, or what --reserve-vram says; once, where a limit leaves more free."""
    monkeypatch.setattr(comfy.model_management, "EXTRA_RESERVED_VRAM", 0.7 * GB)
    assert memory.without_reserved(Machine(24 * GB)).vram == 23.3 * GB
    limited = memory.without_reserved(Machine(12 * GB, withheld=12 * GB))
    assert (limited.vram, limited.withheld) == (12 * GB, 12 * GB)
    assert memory.without_reserved(Machine(23.5 * GB, withheld=0.5 * GB)).vram == 23.3 * GB


def test_pinned_memory_has_comfyuis_limit(monkeypatch):
    """40 % of the computer's memory on Windows, none with --disable-pinned-memory."""
    for most, asked, expected in ((30 * GB, 0, 20 * GB), (8 * GB, 0, 8 * GB), (30 * GB, 25 * GB, 25 * GB), (-1, 0, 0)):
        monkeypatch.setattr(comfy.model_management, "MAX_PINNED_MEMORY", most, raising=False)
        assert memory.pinnable(CARD, asked, 40 * GB) == expected
    assert memory.pinnable(torch.device("cpu"), 0, 40 * GB) == float("inf")


def test_after_a_preview_weights_may_come_back_to_the_card(monkeypatch):
    """Dynamic VRAM keeps off the card what was squeezed out, until ComfyUI resets that: after the node, a whole run."""
    done = []
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbars_reset_watermark_limits", lambda: done.append("reset"))
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda models, memory_required: done.append(models))
    painter.back("borrowed", 1.0)
    assert done == ["reset", ["borrowed"]]


def test_free_memory_is_read_once_cublas_has_its_workspace(monkeypatch):
    """Some 10 to 100 MB that would be counted as free, and are taken by the first product."""
    order = []
    monkeypatch.setattr(machine, "rates", lambda device: order.append("rates") or rates.ASSUMED)
    monkeypatch.setattr(machine, "_wake", lambda device: order.append("cublas"))
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: order.append("free") or 9 * GB)
    monkeypatch.setattr(comfy.model_management, "current_loaded_models", [])
    assert machine.machine(CARD).vram == 9 * GB and order == ["rates", "cublas", "free"]


def test_cublas_is_up_after_a_product_in_each_dtype(monkeypatch):
    made, ones = [], torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device: made.append(device) or ones(*size))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: made.append("waited"))
    machine._wake(CARD)
    assert made == [CARD, "waited"]
    machine._wake(torch.device("cpu"))
    assert made == [CARD, "waited"]
