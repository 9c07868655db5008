"""Seconds, memory and traffic of a training step of a flavour in its true shapes, against what the planner said."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import comfy.model_management
import torch

from bench.gpu import models
from flux2_train import events
from flux2_train.flavours import FLAVOURS
from flux2_train.host.system.cards import chosen
from flux2_train.host.system.rates import rates
from flux2_train.planning.estimate import operations
from flux2_train.planning.planner import GB
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.training import TrainingSettings

RANK, STEPS, WARMUP = 16, 3, 2
EVERY = 0.005  # seconds between two looks at the card's free memory


def step(
    flavour: str, pixels: int, precision: str, card: int = 0, offload: str = "auto", recompute: str = "auto",
    compile: str = "off", cards: str = "1", accumulate: int = 1, speed: str = "exact", attention: str = "comfyui",
) -> dict:  # fmt: skip
    """A row: the run that LoRA Trainer would make of these settings, by its own plan, for a few steps.

    ``card`` is the memory_limit in GiB, 0 for none; ``cards`` is Memory's. Raises UserError where nothing fits.
    """
    model = models.flavour_model(flavour, precision)
    device = model.load_device
    memory = MemorySettings(memory_limit=card * 2**30 / GB, recompute=recompute, cards=cards)
    config = TrainingSettings(rank=RANK, steps=WARMUP + STEPS, validation_items=0, offload=offload, compile=compile,
                              accumulate=accumulate, speed=speed, attention=attention, memory=memory)  # fmt: skip
    trainer = new_trainer(model, *models.caches(pixels, FLAVOURS[flavour].context), config)
    seconds, traffic, warned = [], [], []
    with _watched(chosen(cards, device)) as memory, torch.inference_mode(), closing(trainer.run()) as run:
        for event in run:
            if isinstance(event, events.Warned):
                warned.append(event.text)
            if isinstance(event, events.Stepped):
                seconds.append(event.seconds)
                traffic.append(trainer.memory.how.copied())
    plan, work = trainer.memory.plan, trainer.memory.work
    median = statistics.median(seconds[WARMUP:])
    rate = operations(work, plan.layout) / median
    others = plan.estimate.others
    found = {
        "layout": plan.layout.describe(len(work.weights.blocks)), "seconds": median, "all_seconds": seconds,
        "loss": trainer.history.losses[-1],
        "planned_seconds": plan.estimate.seconds, "of_products": rate / rates(device).flops, "flops": rate,
        "planned_peak": plan.estimate.peak, "traffic": traffic[-1] - traffic[-2],
        "planned_traffic": plan.estimate.traffic, "limited_by": plan.estimate.limit, "warnings": warned,
        "products": trainer.memory.products.sentence, "attention": trainer.memory.how.attention.words(), **memory,
        **({"planned_peaks": [own.peak for own in (plan.estimate, *others)]} if others else {}),
    }  # fmt: skip
    trainer.release()
    return found


@contextmanager
def _watched(cards: Sequence[torch.device]) -> Iterator[dict]:
    """Fills a dict with ``peak``, bytes that torch had allocated, and ``on_card``, bytes in use for whatever reason.

    The second counts what dynamic VRAM holds, which does not come from torch's allocator. Both are of the first card;
    ``peaks`` are those of all, where there are several. CUDA only.
    """
    found: dict = {}
    device = cards[0]
    if device.type != "cuda":
        yield found
        return
    for card in cards:
        torch.cuda.synchronize(card)
        torch.cuda.reset_peak_memory_stats(card)
    total, least, done = torch.cuda.mem_get_info(device)[1], [torch.cuda.mem_get_info(device)[0]], threading.Event()

    def watch() -> None:
        while not done.wait(EVERY):
            least[0] = min(least[0], torch.cuda.mem_get_info(device)[0])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found.update(peak=torch.cuda.max_memory_allocated(device), on_card=total - least[0],
                     loaded=_loaded(device))  # fmt: skip
        if len(cards) > 1:
            found["peaks"] = [torch.cuda.max_memory_allocated(card) for card in cards]


def _loaded(device: torch.device) -> int:
    """Bytes of weights that ComfyUI counts as loaded there."""
    there = comfy.model_management.current_loaded_models
    return sum(loaded.model_loaded_memory() for loaded in there if loaded.device == device)
