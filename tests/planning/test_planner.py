"""The planner's arithmetic against bytes counted on real models, and what it chooses."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from counted import META, adapters_on, as_on_cuda, on_meta, step
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from flux2_train import nano as shipped
from flux2_train.adapters import targets
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.host.borrowed.routing import Route
from flux2_train.host.loading import quantise
from flux2_train.planning import planner, weights
from flux2_train.planning.estimate import blocks_of, estimate, operations, tokens_of, transferred
from flux2_train.planning.layout import LEAF, Layout, groups, spread
from flux2_train.planning.planner import Pins
from flux2_train.planning.work import Machine, Passes, Work
from flux2_train.terminal.main import main

CLOSE = 0.05  # what the planner promises
GB = 10**9
CPU = torch.device("cpu")
MODES = {
    "blocks": Layout(),
    "selective": Layout("selective"),
    "every second": Layout(every=2),
    "off": Layout("off"),
}
SIZES = {"klein-4b": (3072, 5, 20, 7680), "klein-9b": (4096, 8, 24, 12288), "dev": (6144, 8, 48, 15360)}
# flavour, pixels, batch, targets, mode; the short run counts these, the long one all of them
SHORT = [
    ("klein-4b", 1024, 1, "all", "blocks"),
    ("klein-4b", 512, 2, "all", "off"),
    ("klein-4b", 512, 1, "attention", "selective"),
    ("klein-9b", 512, 1, "tiny", "every second"),
    ("dev", 1024, 1, "all", "blocks"),
]
LONG = [(f, px, b, "all", m) for f in SIZES for px in (512, 1024) for b in (1, 3) for m in MODES]
LONG += [("klein-9b", 512, 1, preset, m) for preset in targets.PRESETS for m in MODES]


def work_of(row, precision="bf16", pixels=1024, rank=32, preset="all", **more):
    w = weights.of_flavour(row, precision)
    sites = planner.lora_sites(w, targets.select(w.linears, preset), rank)
    return Work(w, sites, (pixels // 16) ** 2, precision=precision, **more)


def close(found, wanted):
    assert abs(found - wanted) <= CLOSE * wanted, (found / wanted, found, wanted)


def counted(monkeypatch, flavour, pixels, batch, preset, mode, rank=32):
    as_on_cuda(monkeypatch)
    model = on_meta(*SIZES[flavour], guidance=flavour == "dev")
    adapters = adapters_on(model, preset, rank, META)
    saved, alive = step(model, adapters, pixels // 16, batch, replace(MODES[mode], micro_batch=batch), META)
    work = work_of(FLAVOURS[flavour], pixels=pixels, preset=preset, batch=batch)
    found = estimate(work, replace(MODES[mode], micro_batch=batch), Machine(80 * GB))
    return found, saved, alive, work, adapters


def test_sizes_are_those_of_the_flavours():
    assert {name: FLAVOURS[name].sizes for name in SIZES} == SIZES


def check_counted(monkeypatch, case):
    found, saved, alive, work, adapters = counted(monkeypatch, *case)
    parameters = sum(p.numel() for p in adapters.trainable())
    assert work.parameters == parameters
    assert found.parts["adapters"] == 4 * parameters and found.parts["optimizer"] == 8 * parameters
    close(found.parts["activations"] + found.parts["workspace"] + found.parts["gradients"], alive)
    layout = replace(MODES[case[-1]], micro_batch=work.batch)
    blocks = blocks_of(work, tokens_of(work, layout))
    kept = sum(b.inputs if layout.recomputes(n) else b.kept for n, b in enumerate(blocks))
    if layout.checkpointing != "selective":  # what it keeps besides does not go through autograd
        close(kept + last_norm(work), saved)


def last_norm(work):
    """What is saved after the last block: the copy of the image that the final LayerNorm reads."""
    return work.batch * work.image * work.weights.hidden * work.size


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = dict.fromkeys([*SHORT, *LONG] if metafunc.config.getoption("--all") else SHORT)
        metafunc.parametrize("case", list(cases), ids=lambda case: "-".join(map(str, case)))


@pytest.mark.long
def test_activations_equal_what_is_counted(monkeypatch, case):
    check_counted(monkeypatch, case)


@pytest.mark.long
@pytest.mark.parametrize("mode, ratio", [("blocks", 0.5), ("off", 0.5), ("selective", 0.25)])
def test_routed_activations_equal_what_is_counted(monkeypatch, mode, ratio):
    as_on_cuda(monkeypatch)
    model, layout = on_meta(*SIZES["klein-4b"]), MODES[mode]
    kept = torch.zeros(1, round(ratio * 1024), dtype=torch.long)
    _, alive = step(model, adapters_on(model, "all", 32, META), 32, 1, layout, META, [Route(2, 22, kept)])
    parts = estimate(
        work_of(FLAVOURS["klein-4b"], pixels=512, routes=((2, 22, ratio),), routed=1.0), layout, Machine(80 * GB)
    ).parts
    close(parts["activations"] + parts["workspace"] + parts["gradients"], alive)


def test_routes_count_by_their_share_of_the_steps_and_for_memory_only_if_that_is_all():
    plain = work_of(FLAVOURS["klein-4b"], pixels=512)
    half, whole = (replace(plain, routes=((2, 22, 0.5),), routed=share) for share in (0.5, 1.0))
    costs = [operations(work, Layout()) for work in (plain, half, whole)]
    assert costs[1] == pytest.approx((costs[0] + costs[2]) / 2) and costs[2] < 0.75 * costs[0]
    peaks = [estimate(work, Layout(), Machine(80 * GB)).peak for work in (plain, half, whole)]
    assert peaks[0] == peaks[1] > peaks[2]
    edit = replace(whole, references=512)
    assert edit.image_at(5, True) == 512 + 256 and edit.image_at(1, True) == edit.image_at(5, False) == 1024


@pytest.mark.long
def test_on_a_cpu_activations_equal_what_is_counted(nano):
    """nano with real numbers, in fp32, by the CPU's own kernels."""
    adapters = adapters_on(nano.model, "all", 8, CPU)
    row = FLAVOURS["nano"]
    for name, layout in (("off", Layout("off")), ("blocks", Layout())):
        saved, alive = step(nano.model, adapters, 16, 1, layout, CPU)
        work = work_of(row, pixels=256, rank=8, size=4)
        found = estimate(work, layout, Machine(GB))
        blocks = blocks_of(work, tokens_of(work, layout))
        close(sum(b.kept if name == "off" else b.inputs for b in blocks) + last_norm(work), saved)
        close(found.parts["activations"] + found.parts["workspace"] + found.parts["gradients"], alive)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "base.safetensors"
    save_file(shipped.transformer(), path)
    return path


@pytest.mark.parametrize("precision", ["bf16", *quantise.FORMATS])
def test_bytes_of_weights_are_those_of_the_files(source, tmp_path, precision):
    if precision != "bf16" and precision not in quantise.available():
        pytest.skip(f"this ComfyUI has no {precision}")
    tensors = shipped.transformer() if precision == "bf16" else dict(quantise.stored([source], precision, CPU))
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    found, known = weights.of_files([path]), weights.of_flavour(FLAVOURS["nano"], precision)
    norms = sum(t.nbytes for name, t in tensors.items() if "_norm" in name or name.endswith(".comfy_quant"))
    assert found.total == known.total == sum(t.nbytes for t in tensors.values()) - norms
    assert found.stored == known.stored and found.linears == known.linears and found.plain == known.plain
    assert sum(known.block_bytes()) < known.total


def test_a_file_that_is_no_transformer_is_named(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="other.safetensors is not a FLUX.2 transformer"):
        weights.of_files([tmp_path / "other.safetensors"])
    (tmp_path / "text.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match="header can be read"):
        weights.of_files([tmp_path / "text.safetensors"])


def test_parameters_of_the_flavours():
    """Their makers say 4, 9 and 32 billion."""
    for name, low, high in (("klein-4b", 3.5, 4.5), ("klein-9b", 8.5, 9.5), ("dev", 31.5, 32.5)):
        w = weights.of_flavour(FLAVOURS[name], "bf16")
        assert low < sum(a * b for a, b in w.linears.values()) / 1e9 < high


def test_auto_takes_the_fastest_plan_that_fits():
    work = work_of(FLAVOURS["klein-9b"], rank=16)
    chosen = [planner.choose(work, Machine(size * GB)) for size in (8, 12, 24, 32, 60)]
    assert all(plan.fits(Machine(size * GB)) for plan, size in zip(chosen, (8, 12, 24, 32, 60), strict=True))
    seconds = [plan.estimate.seconds for plan in chosen]
    assert seconds == sorted(seconds, reverse=True) and chosen[0].layout.streamed
    assert chosen[-1].layout == Layout("off")
    every = [planner.Plan(layout, estimate(work, layout, Machine(12 * GB))) for layout in all_layouts(work)]
    fitting = [plan for plan in every if plan.fits(Machine(12 * GB))]
    assert chosen[1].estimate.seconds == min(plan.estimate.seconds for plan in fitting)


def all_layouts(work):
    blocks = work.weights.double + work.weights.single
    for layout in planner.combinations(work, Pins()):
        yield from (replace(layout, streamed=spread(n, blocks) if n else ()) for n in range(blocks + 1))


def test_pins_are_respected():
    work = work_of(FLAVOURS["klein-4b"], batch=4)
    machine = Machine(16 * GB)
    for pins, check in (
        (Pins(checkpointing="blocks", every=1), lambda x: x.checkpointing == "blocks" and x.every == 1),
        (Pins(streamed=7), lambda x: x.streamed == spread(7, 25)),
        (Pins(micro_batch=2), lambda x: x.micro_batch == 2),
        (Pins(offload_activations=True, checkpointing="blocks", every=1), lambda x: x.offload_activations),
        (Pins(streamed=5, grouped=LEAF), lambda x: x.grouped == LEAF),
        (Pins(streaming=False), lambda x: not x.streamed and not x.offload_activations),
    ):
        assert check(planner.choose(work, machine, pins).layout), pins


def test_what_cannot_fit_is_refused_with_what_can():
    work = work_of(FLAVOURS["klein-9b"], rank=16)
    with pytest.raises(UserError) as error:
        planner.choose(work, Machine(8 * GB), Pins(streamed=0))
    text = str(error.value)
    assert "8.0 GB are free" in text and "offload 'auto' with nothing pinned (" in text
    with pytest.raises(UserError, match="GB of host memory, where 4.0 GB are free"):
        planner.choose(work, Machine(8 * GB, ram=4 * GB))
    with pytest.raises(UserError, match="train a smaller flavour"):
        planner.choose(work, Machine(GB))


def test_each_level_takes_less_until_there_is_none():
    work = work_of(FLAVOURS["klein-4b"], batch=4)
    machine, pins = Machine(80 * GB), Pins()
    plans = [planner.choose(work, machine, pins)]
    while (below := planner.lower(work, machine, plans[-1], pins)) is not None:
        plans.append(below)
    peaks = [plan.estimate.peak for plan in plans]
    assert len(peaks) > 4 and all(b < a for a, b in pairwise(peaks))
    least = planner.smallest(replace(work, batch=1), machine, pins).estimate
    assert least.peak > 0.9 * peaks[-1]


def test_streaming_trades_bytes_for_time():
    work, machine = work_of(FLAVOURS["dev"], "fp8 (scaled)"), Machine(24 * GB)
    half, leaf = Layout(streamed=spread(28, 56)), Layout(streamed=spread(28, 56), grouped=LEAF)
    resident, some, fine = (estimate(work, layout, machine) for layout in (Layout(), half, leaf))
    weights_there = work.weights.total - sum(work.weights.block_bytes()[n] for n in half.streamed)
    assert some.parts["weights"] == weights_there
    assert some.host["streamed weights"] == work.weights.total - weights_there
    assert resident.peak > some.peak > fine.peak  # single Linears need smaller buffers
    assert resident.traffic == 0 and resident.limit == "arithmetic"
    slow = estimate(work, half, Machine(24 * GB, bus=1e9))
    assert slow.limit == "bus" and slow.seconds > some.seconds


def test_traffic_counts_both_ways_and_every_pass():
    work = work_of(FLAVOURS["klein-4b"])
    assert transferred(work, Layout(), 0, 0) == 0
    assert transferred(work, Layout(), 100, 30) == 2 * 70
    kept = replace(work, passes=Passes(trained=2, plain=1))
    assert transferred(kept, Layout(), 100, 30) == 2 * 2 * 70 + 100
    assert transferred(replace(work, batch=4), Layout(micro_batch=1), 100, 30) == 4 * 2 * 70


@pytest.mark.long
def test_operations_against_torchs_counter():
    """nano's step, counted by torch: matrix products and attention in forward, recomputation and backward."""
    model = on_meta(*FLAVOURS["nano"].sizes)
    with pytest.MonkeyPatch.context() as patch:
        as_on_cuda(patch)
        adapters = adapters_on(model, "all", 16, META)
        for layout in (Layout(), Layout("off"), Layout("selective"), Layout(every=2)):
            with FlopCounterMode(display=False) as counter:
                step(model, adapters, 32, 1, layout, META)
            close(operations(work_of(FLAVOURS["nano"], pixels=512, rank=16), layout), counter.get_total_flops())


def test_even_spread_and_groups():
    assert spread(2, 8) == (2, 6) and spread(8, 8) == tuple(range(8)) and spread(0, 8) == ()
    inside = {f"b{n}": [f"b{n}.x", f"b{n}.y"] for n in range(4)}
    layout = Layout(streamed=(0, 1, 3), per_group=2)
    assert groups(layout, list(inside), inside) == [["b0.x", "b0.y", "b1.x", "b1.y"], ["b3.x", "b3.y"]]
    assert groups(replace(layout, grouped=LEAF), list(inside), inside)[:2] == [["b0.x"], ["b0.y"]]


@pytest.mark.long
def test_readmes_table_is_what_the_command_prints(capsys):

    assert main(["plan"]) == 0
    assert capsys.readouterr().out.strip() in (Path(__file__).parents[2] / "README.md").read_text()


def test_the_command_explains_one_plan(capsys):
    assert main(["plan", "--flavour", "klein-9b", "--vram", "12"]) == 0
    out = capsys.readouterr().out
    assert "blocks streamed" in out and "peak" in out and "s per step, limited by" in out
    assert main(["plan", "--flavour", "dev", "--vram", "6"]) == 1 and "GB are free" in capsys.readouterr().err
    assert main(["plan", "--flavour", "dev"]) == 1
