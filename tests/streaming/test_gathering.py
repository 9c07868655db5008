"""A base that is shared among processes trains the LoRA of the whole one, bit for bit, and moves what the plan says."""

import json
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from children import run_in_processes
from support import tiny_caches

from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.planning.estimate import estimate
from flux2_train.planning.layout import Layout, spread
from flux2_train.planning.planner import lora_sites
from flux2_train.planning.weights import of_flavour
from flux2_train.planning.work import Machine, Work
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.objective import PreservationSettings
from flux2_train.settings.previews import ValidationLossSettings
from flux2_train.settings.rollout import RolloutSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.streaming.gathering import Part
from flux2_train.streaming.ring import ALIGNMENT, Group
from flux2_train.train.plans import require_shareable

CONFIG = TrainingSettings(
    steps=6, rank=2, learning_rate=2e-3, preservation=0.5, preservation_options=PreservationSettings(every=1),
    validation_items=3, seed=5,
)  # fmt: skip
WITHIN = 0.05  # of the plan
BESIDE = 100e6  # bytes that no plan counts: what the allocator keeps, and torch.distributed itself


@pytest.mark.long
def test_shared_base_gives_the_bits_of_the_whole_one_and_the_bytes_of_the_plan(tmp_path, full_size):
    (tmp_path / "caches").write_bytes(pickle.dumps(tiny_caches(repeats=3)))
    for count in (2, 4) if full_size else (2,):
        done = run_in_processes(count, "share_tiny.py", tmp_path / "caches", tmp_path / "out", CONFIG.to_json(),
                                "bf16", "scaled_fp8_e4m3")  # fmt: skip
        assert done.returncode == 0, done.stderr
        for rank in range(count):
            for format, found in pickle.loads((tmp_path / f"out.{rank}").read_bytes()).items():
                assert found["same"] and found["moved"], (rank, format)
                assert f"shared by {count} processes" in found["text"]
                totals = found["received"][:-1]  # the last step is followed by validation
                in_steps = {after - before for before, after in pairwise(totals[1:])}
                assert len(in_steps) == 1 and found["kept"] < found["weights"] < found["whole"], found
                if format != "bf16":  # without preservation, whose turns between passes the plan counts as a mean
                    assert abs(in_steps.pop() / found["planned"] - 1) < WITHIN, found
                print(f"{count} processes, {format}: {totals[-1] - totals[-2]} bytes received in a step, planned "
                      f"{found['planned']}; {found['kept']} bytes kept of {found['whole']}")  # fmt: skip


@pytest.mark.long
def test_in_any_order_every_process_reads_what_was_cut(tmp_path):
    """Also where the ring has guessed wrong: the buffer that is then filled again may still be arriving."""
    done = run_in_processes(2, "gather_probe.py", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        found = json.loads((tmp_path / f"out.{rank}").read_text())
        assert found["wrong"] == 0 and found["missed"] > found["reads"] // 4, found


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_parts_one_after_the_other_are_the_group(count):
    generator = torch.Generator().manual_seed(1)
    weights = {"a": [torch.randn(7, 5, generator=generator), torch.tensor(3.0)],
               "b": [torch.randint(0, 255, (999,), dtype=torch.uint8, generator=generator)]}  # fmt: skip
    parts = [Part(weights, rank, count, torch.device("cpu")) for rank in range(count)]
    assert len({part.own.numel() for part in parts}) == 1 and parts[0].size % (count * ALIGNMENT) == 0
    buffer = torch.cat([part.own for part in parts])
    assert buffer.numel() == parts[0].size >= Group(weights).size
    for name, tensors in weights.items():
        for piece, tensor in zip(parts[-1].pieces[name], tensors, strict=True):
            assert torch.equal(piece.of(buffer), tensor)


def test_what_one_process_would_do_alone_is_refused():
    shared = replace(CONFIG, memory=MemorySettings(share_base=True))
    require_shareable(shared, 2)
    with pytest.raises(UserError, match="nobody to share"):
        require_shareable(shared, 1)
    images = replace(shared, validation_loss=ValidationLossSettings(per_image=True))
    rolled = replace(shared, rollout=RolloutSettings(probability=0.5))
    for config, words in ((images, "per_image"), (rolled, "scheduled")):
        with pytest.raises(UserError, match=f"does not go with {words}"):
            require_shareable(config, 2)


def test_the_plan_divides_the_blocks_and_counts_what_comes_from_the_others():
    weights = of_flavour(FLAVOURS["dev"], "fp8 (scaled)")
    sites = lora_sites(weights, list(weights.linears), 16)
    layout, machine = Layout(streamed=spread(56, 56)), Machine(24e9, bus=20e9)
    whole, streamed, two, four = (
        estimate(Work(weights, sites, 4096, shares=shares), each, machine)
        for shares, each in ((1, Layout()), (1, layout), (2, layout), (4, layout))
    )
    blocks = streamed.host["streamed weights"]
    assert not two.host["streamed weights"] and two.parts["streaming"] == streamed.parts["streaming"]
    for count, shared in ((2, two), (4, four)):
        assert shared.parts["weights"] == whole.parts["weights"] - blocks + blocks // count
        assert shared.traffic == streamed.traffic * (count - 1) // count
        assert shared.transfer == pytest.approx(shared.traffic / 20e9)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="own memory is read as Linux tells it")
def test_memory_of_each_process_and_bytes_gathered_are_what_the_plan_says(tmp_path):
    """On a base of 1 GB: a part of the weights, two blocks, and what a step takes; to 5 %, and what no plan counts."""
    done = run_in_processes(2, "share_probe.py", tmp_path / "weights.safetensors", 26, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        found = json.loads((tmp_path / f"out.{rank}").read_text())
        print(f"process {rank} of 2: {found}")
        assert found["base"] >= 1e9 and abs(found["kept"] / found["weights"] - 1) < WITHIN
        assert abs(found["rise"] - found["planned"]) < WITHIN * found["planned"] + BESIDE, found
        per_step = found["received"][2] - found["received"][1]
        assert abs(per_step / found["traffic"] - 1) < WITHIN, found
