"""From a run's settings to its plan: the work that the planner plans for, and what the user has fixed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..adapters.live import Adapters
from ..errors import UserError
from ..host import identify, sizes
from ..host.borrowed.borrow import training_mode
from ..host.borrowed.cards import Cards
from ..host.graph_types import ModelPatcher
from ..host.loading import text_length
from ..host.system import cards
from ..host.system.machine import machine
from ..host.system.memory import pinnable, without_reserved
from ..planning.estimate import estimate
from ..planning.layout import BLOCKS, LEAF, OFF, WHOLE
from ..planning.planner import GB, Pins, Plan, choose, fastest_or_smallest, most_in_flight
from ..planning.work import Machine, Passes, Work
from ..settings.memory import ALL, AUTO, ON
from ..settings.optimizer import OTHER
from ..settings.slider import OFF as NO_SLIDER
from ..settings.slider import PROMPTS
from ..settings.training import EXACT, TrainingSettings
from .other_optimizers import state_bytes
from .preview_request import PreviewRequest
from .routing import resolved

SHARE = 0.5  # of the free memory, without a GPU: other programs need some of it, and swapping would cost far more time


def passes_of(config: TrainingSettings) -> Passes:
    """How often a step runs the model: all parts of ``train.objective`` that are on, averaged over steps."""
    guidance, preservation = config.guidance, config.preservation_options
    preserving = 1 / preservation.every if config.preservation else 0.0
    together = config.preservation and preservation.together
    slider = config.slider.slider
    trained = 1.0 if together else 1.0 + preserving + (slider != NO_SLIDER)
    plain = preserving + (guidance.contrastive_guidance != 1) + bool(preservation.outside_mask) + _sampling(config)
    plain += 3 * (slider == PROMPTS)
    return Passes(trained, plain, 1 + bool(together) + (guidance.true_cfg != 1))


def _sampling(config: TrainingSettings) -> float:
    """Forward passes per step with which the model makes inputs itself, if they were one batch; the ramp left out."""
    rollout = config.rollout
    passes = (rollout.max_offset + 1) / 2 * (2 if rollout.sampler == "heun" else 1) + rollout.reflexflow
    return rollout.probability * passes


def work_of(
    config: TrainingSettings,
    model: ModelPatcher,
    adapters: Adapters,
    tokens: int,
    previews: PreviewRequest | None = None,
    references: int = 0,
) -> Work:
    """The run as the planner sees it. ``tokens``: the most image tokens of a sample, including its ``references``.

    ``previews`` says which previews are painted. Its second MODEL is not counted: ComfyUI unloads one model for the
    other.
    """
    sites = {n: (adapters.kept(n), sum(p.numel() for p in adapters.of_layer(n))) for n in adapters.names}
    trained = adapters.trainable()
    return Work(
        sizes.weights_of(model), sites, tokens, text_length.read_by(model), config.batch, config.accumulate,
        passes=passes_of(config), optimizer=config.optimizer.optimizer, ema=bool(config.ema.ema_decay),
        fp32_adapters=config.adapter.compute == "fp32", precision=sizes.precision_of(model),
        in_one_step=sizes.dequantises_in_one_step(sizes.precision_of(model)),
        size=sizes.number_size(model), kind="dora" if config.adapter.dora else config.adapter.kind,
        edges=sum(sum(p.shape) for p in trained), begun=sum(p.numel() for p in trained if p.any()),
        references=references, optimizer_state=_optimizer_state(config, trained), eight_bit=config.speed != EXACT,
        **_routing(config, model),
        **(_painting(previews) if previews else {}),
    )  # fmt: skip


def _optimizer_state(config: TrainingSettings, trained: list[torch.nn.Parameter]) -> int:
    if config.optimizer.optimizer != OTHER:
        return 0
    with training_mode():
        return state_bytes(config.optimizer, trained)


def _routing(config: TrainingSettings, model: ModelPatcher) -> dict[str, Any]:
    """The routes and their share of the steps; while the fraction falls, a step counts as not routed."""
    routes = resolved(config.routing, sum(identify.sizes(model)[1:3]))
    share = max(0.0, config.routing.until - config.routing.ramp) / 100
    return {"routes": tuple((r.first, r.last, r.ratio) for r in routes), "routed": share if routes else 0.0}


def _painting(previews: PreviewRequest) -> dict[str, int]:
    """Image tokens of the largest preview with its references at full size, and the bytes that decoding one takes."""
    width, height = previews.config.largest
    pixels = [sum(image.shape[0] * image.shape[1] * image.shape[2] for image in images) for images in
              previews.references]  # fmt: skip
    tokens = (width * height + max(pixels, default=0)) // 256
    return {"preview": tokens, "decoding": sizes.decoding(previews.vae, width, height)}


def pins_of(config: TrainingSettings, model: ModelPatcher) -> Pins:
    """What the user has fixed for the planner. Without a GPU nothing is streamed unless the user sets it."""
    memory, gpu = config.memory, model.load_device.type == "cuda"
    checkpointing = OFF if not config.checkpointing else None if memory.recompute == AUTO else memory.recompute
    away = None if memory.offload_activations == AUTO else memory.offload_activations == ON
    streamed = _streamed(config, model)
    return Pins(
        checkpointing or (BLOCKS if away else None),
        memory.recompute_every or (1 if away else None),
        away if away is not None or gpu else False,
        streamed,
        LEAF if memory.group_offload == LEAF else WHOLE,
        memory.blocks_per_group,
        memory.stream,
        min(memory.micro_batch, config.batch) or (None if gpu or memory.memory_limit else config.batch),
        gpu or bool(streamed) or bool(away),
    )


def _streamed(config: TrainingSettings, model: ModelPatcher) -> int | None:
    """The number of streamed blocks that the user set; None leaves it to the planner."""
    memory, (_, double, single, _) = config.memory, identify.sizes(model)
    blocks = double + single
    if memory.blocks_to_swap > blocks:
        name = identify.flavour_name(model)
        raise UserError(f"blocks_to_swap is {memory.blocks_to_swap}, but {name} has {blocks} blocks; set at most that.")
    if memory.blocks_to_swap or memory.offload_percent:
        return memory.blocks_to_swap or round(blocks * memory.offload_percent / 100)
    if config.offload == ALL or memory.streams or memory.share_base:
        return blocks
    return 0 if config.offload == OFF or model.load_device.type != "cuda" else None


def require_shareable(config: TrainingSettings, processes: int) -> None:
    """Raise UserError for what one process does alone, or some more often than others: a shared base needs all of them.

    Every process must run the model equally often, because each has a part of every block.
    """
    if processes < 2:
        raise UserError("share_base is on, and one process has nobody to share the base with: set processes, or turn "
                        "share_base off.")  # fmt: skip
    alone = {
        "per_image of Validation Loss": config.validation_loss.per_image,
        "scheduled sampling": config.rollout.probability > 0,
    }  # fmt: skip
    on = [name for name, is_on in alone.items() if is_on]
    if on:
        raise UserError(f"share_base is on, which does not go with {' and '.join(on)}: turn one of them off.")


def may_overlap(config: TrainingSettings) -> bool:
    """Whether passes may be in flight over several cards, which gives the same bits as one after the other.

    Not with dropout, which draws from one generator in the order of the passes. Compiled blocks run on one card anyway.
    """
    return not config.adapter.dropout


def plan(work: Work, pins: Pins, computer: Machine, binding: bool) -> Plan:
    """The plan of a run. If ``binding``, it has to fit the computer: raises UserError if no plan does.

    Otherwise no run is refused: the plan is the fastest that takes at most SHARE of the free memory, or the smallest.
    """
    if binding:
        return choose(work, computer, pins)
    boundless = Machine(float("inf"), float("inf"), computer.bus, computer.flops)
    found = fastest_or_smallest(work, replace(boundless, vram=SHARE * computer.vram), pins).layout
    layout = replace(found, in_flight=most_in_flight(work, found))
    return Plan(layout, estimate(work, layout, boundless))


def available(device: torch.device, limit: float = 0.0, pinned: float = 0.0) -> Machine:
    """What the machine has for a run. ``limit`` of device and ``pinned`` of host memory are bytes; 0 is no limit."""
    computer = machine(device, limit)
    if device.type == "cuda":
        computer = without_reserved(computer)
    return replace(computer, pinned=pinnable(device, pinned, computer.ram))


def planned(
    config: TrainingSettings,
    model: ModelPatcher,
    adapters: Adapters,
    tokens: int,
    previews: PreviewRequest | None = None,
    references: int = 0,
    processes: int = 1,
    on: Cards | None = None,
) -> tuple[Work, Pins, Machine, Plan]:
    """The plan to begin with, and what is needed to find a smaller one later (work, pins, machine)."""
    device: torch.device = model.load_device
    work, pins = work_of(config, model, adapters, tokens, previews, references), pins_of(config, model)
    if config.memory.share_base:
        require_shareable(config, processes)
        work = replace(work, shares=processes)
    computer = available(device, config.memory.memory_limit * GB, config.memory.pinned_memory * GB)
    if on and on.several:
        others = cards.free(on.devices[1:], config.memory.memory_limit * GB)
        work = replace(work, cards=on.counts, overlaps=may_overlap(config))
        computer = replace(computer, others=tuple(others))
    binding = device.type == "cuda" or bool(config.memory.memory_limit)
    return work, pins, computer, plan(work, pins, computer, binding)
