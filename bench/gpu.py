"""Seconds, memory and traffic of a training step on a card, against what the planner said: python -m bench.gpu.

Every flavour at 512 and 1024 pixels, rank 32, with random weights in the true shapes: resident in bf16 and in fp8, and
laid out by the planner for cards of 24, 16, 12 and 8 GB, to which the allocator is capped. Prints one table and writes
``bench/results/gpu_DEVICE.json``. ``--device cpu`` runs it on nano, to show that it works; memory is
measured on cards only.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flux2_train.errors import UserError  # noqa: E402
from flux2_train.flavours import FLAVOURS, Flavour  # noqa: E402
from flux2_train.host.bootstrap import import_comfyui  # noqa: E402
from flux2_train.layout import Layout, spread  # noqa: E402
from flux2_train.memory.estimate import Work, estimate, operations  # noqa: E402
from flux2_train.memory.planner import Machine, Pins, Plan, choose, lora_sites  # noqa: E402

RANK, STEPS, WARMUP = 32, 3, 2
CARDS = (24, 16, 12, 8)
LIMIT = 520.0  # seconds: what is not begun by then is left out, and said to be
STORED = {"bf16": torch.bfloat16, "fp8 (e4m3)": torch.float8_e4m3fn}
HEADS = ("flavour", "pixels", "weights", "card", "layout", "s/step", "of limit", "peak GB", "planned", "GB over bus")


@dataclass(frozen=True)
class Case:
    """One row: a flavour at a resolution, how its weights are stored, and the card it is laid out for, 0 for this."""

    flavour: Flavour
    pixels: int
    precision: str
    card: int = 0
    layout: Layout | None = None


def cases(device: str) -> Iterator[Case]:
    """What is measured, the most telling first."""
    if device == "cpu":
        row = FLAVOURS["nano"]
        for precision in STORED:
            for layout in (Layout("off"), Layout("selective"), Layout(), Layout(streamed=spread(4, 8)),
                           Layout(streamed=spread(8, 8)), Layout(streamed=spread(8, 8), grouped="leaf")):  # fmt: skip
                yield Case(row, 256, precision, layout=layout)
        return
    for name in ("klein-4b", "klein-9b", "dev"):
        for pixels in (1024, 512):
            yield from (Case(FLAVOURS[name], pixels, precision, layout=Layout()) for precision in STORED)
            yield from (Case(FLAVOURS[name], pixels, "fp8 (e4m3)", card) for card in CARDS)
            yield from (Case(FLAVOURS[name], pixels, "bf16", card) for card in CARDS[:1])


def random_model(case: Case, device: torch.device, resident: bool):
    """A MODEL of the flavour's shapes with random weights, on the device or in host memory."""
    import comfy.model_patcher
    import comfy.supported_models

    hidden, double, single, context = case.flavour.sizes
    number = torch.float32 if device.type == "cpu" else torch.bfloat16
    config = dict(
        image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, context_in_dim=context,
        hidden_size=hidden, mlp_ratio=3.0, num_heads=hidden // 128, depth=double, depth_single_blocks=single,
        axes_dim=[32] * 4, theta=2000, patch_size=1, qkv_bias=False, guidance_embed=case.flavour.embedded_guidance,
        txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index",
        ref_index_scale=10.0, dtype=STORED[case.precision],
    )  # fmt: skip
    known = comfy.supported_models.Flux2(config)
    known.set_inference_dtype(STORED[case.precision], number)
    place = device if resident else torch.device("cpu")
    made = known.get_model({}, "", device=place)
    tile = torch.randn(1 << 20, device=place)
    for parameter in made.diffusion_model.parameters():
        flat = parameter.data.view(-1)
        width = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.0
        for start in range(0, flat.numel(), tile.numel()):
            part = flat[start : start + tile.numel()]
            part.copy_(tile[: part.numel()] * width + (parameter.ndim == 1))
    return comfy.model_patcher.ModelPatcher(made, load_device=device, offload_device=torch.device("cpu"))


def work_of(case: Case, model, adapters) -> Work:
    """The step as the planner sees it."""
    from flux2_train.host import sizes

    weights = sizes.weights_of(model)
    return Work(weights, lora_sites(weights, adapters.names, RANK), (case.pixels // 16) ** 2,
                precision=case.precision, size=sizes.number_size(model))  # fmt: skip


def plan_of(case: Case, work: Work, machine: Machine) -> Plan:
    """The layout that is given, or the planner's for the case's card."""
    if case.layout is not None:
        return Plan(case.layout, estimate(work, case.layout, machine))
    return choose(work, Machine(case.card * 2**30, machine.ram, machine.bus, machine.flops), Pins())


def measure(case: Case, device: torch.device, machine: Machine) -> dict:
    """One row. Raises UserError where the planner says that it does not fit."""
    from flux2_train.adapters import targets
    from flux2_train.adapters.live import AdapterConfig, Adapters, Site
    from flux2_train.host.borrow import Borrowed, borrow_as, linears, training_mode

    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, case.card * 2**30 / total) if case.card else 1.0, device)
    model = random_model(case, device, resident=case.layout is not None and device.type == "cuda")
    layers = linears(model)
    sites = {n: Site(layers[n].in_features, layers[n].out_features, RANK, RANK) for n in targets.select(layers)}
    with training_mode():
        adapters = Adapters(sites, AdapterConfig(), 0, device)
    work = work_of(case, model, adapters)
    plan = plan_of(case, work, machine)
    how = Borrowed(plan.layout)
    room = max(0.0, machine.vram - plan.estimate.parts["weights"]) if case.card else 0.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with borrow_as(model, adapters.deltas(), how, room) as borrowed:
        seconds, traffic = steps(case, borrowed, adapters, device, how)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    limit = max(operations(work, plan.layout) / machine.flops, plan.estimate.traffic / machine.bus)
    return {
        "flavour": case.flavour.name, "pixels": case.pixels, "weights": case.precision, "card": case.card or "",
        "layout": plan.layout.describe(len(work.weights.blocks)), "seconds": statistics.median(seconds),
        "of_limit": limit / statistics.median(seconds), "peak": peak, "planned_peak": plan.estimate.peak,
        "traffic": traffic, "planned_traffic": plan.estimate.traffic, "planned_seconds": plan.estimate.seconds,
    }  # fmt: skip


def steps(case: Case, borrowed, adapters, device: torch.device, how) -> tuple[list[float], float]:
    """Seconds of each measured step, and bytes that one moves over the bus."""
    from flux2_train.host.borrow import training_mode
    from flux2_train.host.velocity import Condition, velocity

    side, seconds, copied = case.pixels // 16, [], 0
    x = torch.randn(1, 128, side, side, device=device)
    condition, t = Condition(torch.randn(1, 512, case.flavour.context, device=device)), torch.tensor([0.5])
    with training_mode():
        optimizer = torch.optim.AdamW(adapters.trainable())
        for number in range(WARMUP + STEPS):
            before, started = how.copied(), time.perf_counter()
            velocity(borrowed, x, t.to(device), [condition]).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(adapters.trainable(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= WARMUP:
                seconds.append(time.perf_counter() - started)
                copied = how.copied() - before
    return seconds, copied


def line(row: dict) -> str:
    """A row of the table, in Markdown."""
    if "left_out" in row:
        cells = [row[key] for key in ("flavour", "pixels", "weights", "card")] + [row["left_out"], *[""] * 5]
    else:
        peak = "not measured" if row["peak"] is None else f"{row['peak'] / 1e9:.2f}"
        cells = [row[key] for key in ("flavour", "pixels", "weights", "card", "layout")]
        cells += [f"{row['seconds']:.3f}", f"{row['of_limit']:.0%}", peak, f"{row['planned_peak'] / 1e9:.2f}",
                  f"{row['traffic'] / 1e9:.2f}"]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def run(device: torch.device) -> list[dict]:
    """Every case, printed as it is measured."""
    from flux2_train.host.machine import machine

    there, started, rows = machine(device), time.perf_counter(), []
    print(f"{there.flops / 1e12:.2f} TFLOP/s of matrix products, {there.bus / 1e9:.1f} GB/s from host memory\n")
    print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
    for case in cases(device.type):
        head = {"flavour": case.flavour.name, "pixels": case.pixels, "weights": case.precision, "card": case.card}
        try:
            if time.perf_counter() - started > LIMIT:
                raise UserError("out of time")
            rows.append(measure(case, device, there))
        except (UserError, torch.OutOfMemoryError) as error:
            rows.append({**head, "left_out": str(error).split(".")[0]})
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(line(rows[-1]), flush=True)
    return [{"flops": there.flops, "bus": there.bus}, *rows]


def main() -> None:
    """Measure, print, write."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--out", type=Path, help="default: bench/results/gpu_DEVICE.json")
    options = parser.parse_args()
    import_comfyui(*(["--cpu"] if options.device == "cpu" else []))
    from bench.speed.__main__ import machine as facts

    out = options.out or ROOT / "bench" / "results" / f"gpu_{options.device}.json"
    rates, *rows = run(torch.device(options.device))
    out.write_text(json.dumps({"machine": facts(torch.get_num_threads()), **rates, "rows": rows}, indent=1) + "\n")
    print(f"\n{out.name}")


if __name__ == "__main__":
    main()
