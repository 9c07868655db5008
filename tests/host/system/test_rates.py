"""How fast the card is: measured once per card and driver, kept, and never trusted where it cannot be read."""

import json
import time

import comfy.model_management
import pytest
import torch
from support import brief_flux2, tiny_caches

from flux2_train.flavours import FLAVOURS
from flux2_train.host import sizes
from flux2_train.host.system import machine, rates
from flux2_train.planning import table
from flux2_train.planning.estimate import operations
from flux2_train.planning.work import Machine
from flux2_train.runs import precision as fit
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.training import TrainingSettings
from flux2_train.terminal import plan
from flux2_train.terminal.main import parser
from flux2_train.train import plans

DEVICE = comfy.model_management.get_torch_device()
FOUND = rates.Rates(11e9, 4e9, 70e12, {"bf16": 70e12, "int8": 130e12}, 400e9, 2e9, True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty user folder, and a process that knows no rates."""
    monkeypatch.setattr(rates, "cache_folder", lambda: tmp_path / "user")
    monkeypatch.setattr(rates, "_known", {})
    return tmp_path / "user"


@pytest.fixture
def measured(folder, monkeypatch):
    """Counts how often something is measured."""
    calls = []
    monkeypatch.setattr(rates, "measure", lambda device: calls.append(device) or FOUND)
    return calls


def another_process(monkeypatch):
    monkeypatch.setattr(rates, "_known", {})


def test_what_is_measured_is_kept_for_other_processes(measured, monkeypatch):
    assert rates.kept(DEVICE) is None
    assert rates.rates(DEVICE) == rates.rates(DEVICE) == FOUND and len(measured) == 1
    another_process(monkeypatch)
    assert rates.kept(DEVICE) == rates.rates(DEVICE) == FOUND and len(measured) == 1


@pytest.mark.parametrize("changed", ["name_of", "driver"])
def test_another_card_or_driver_is_measured_anew_and_both_are_kept(measured, monkeypatch, changed):
    card = torch.device("cuda", 0)
    monkeypatch.setattr(rates, "name_of", lambda device: "NVIDIA A")
    monkeypatch.setattr(rates, "driver", lambda: "driver 1")
    rates.rates(card)
    before = getattr(rates, changed)
    monkeypatch.setattr(rates, changed, lambda *_: "another")
    rates.rates(card)
    assert len(measured) == 2
    another_process(monkeypatch)
    monkeypatch.setattr(rates, changed, before)
    assert rates.kept(card) == FOUND


GOOD = {"bus": 1e9, "bus_unpinned": 1e9, "flops": 1e12, "products": {}, "memory": 1e9, "disk": 0.0}


@pytest.mark.parametrize("content", [
    "", "{", "[]", "null", "{KEY: 3}", "{KEY: {}}", "\x00" * 100, "[" * 10000,
    *(f"{{KEY: {json.dumps({**GOOD, **bad})}}}" for bad in (
        {"bus": -1}, {"flops": 0}, {"flops": float("nan")}, {"bus": float("inf")}, {"bus": "fast"}, {"bus": True},
        {"products": []}, {"products": {"bf16": None}}, {"memory": None})),
    f"{{KEY: {json.dumps(GOOD)}}}" + " " * rates.LARGEST,
])  # fmt: skip
def test_a_damaged_file_is_measured_over(folder, measured, content):
    folder.mkdir()
    (folder / rates.FILE).write_text(content.replace("KEY", json.dumps(rates.key_of(DEVICE))))
    assert rates.rates(DEVICE) == FOUND and len(measured) == 1
    assert json.loads((folder / rates.FILE).read_text())[rates.key_of(DEVICE)]["bus"] == FOUND.bus


def test_a_good_file_is_not(folder, measured):
    folder.mkdir()
    (folder / rates.FILE).write_text(json.dumps({rates.key_of(DEVICE): GOOD}))
    assert rates.rates(DEVICE).flops == 1e12 and rates.rates(DEVICE).measured and not measured


def test_the_file_does_not_grow_for_ever(folder, measured, monkeypatch):
    for number in range(rates.ENTRIES + 5):
        monkeypatch.setattr(rates, "key_of", lambda device, number=number: f"card {number}")
        rates.rates(DEVICE)
    kept = json.loads((folder / rates.FILE).read_text())
    assert list(kept) == [f"card {number}" for number in range(5, rates.ENTRIES + 5)]


def test_where_nothing_can_be_written_it_is_known_to_this_process(folder, measured, caplog):
    folder.write_text("a file in the folder's place")
    assert rates.rates(DEVICE) == rates.rates(DEVICE) == FOUND and len(measured) == 1
    assert "could not be kept" in caplog.text


def test_where_measuring_fails_the_planners_rates_are_assumed_and_not_kept(folder, monkeypatch, caplog):
    def fails(device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rates, "measure", fails)
    found = rates.rates(DEVICE)
    assert (found.bus, found.flops, found.measured) == (Machine.bus, Machine.flops, False)
    assert "could not be measured" in caplog.text and not folder.exists()
    assert found.words() == "assumed: 50 TFLOP/s, 20 GB/s from host memory"


def test_a_measurement_is_close_to_another_way_of_measuring(folder):
    found = rates.measure(DEVICE)
    a, b = (torch.randn(512, 512).to(DEVICE) for _ in range(2))
    times = []
    for _ in range(20):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    assert found.measured and 0.2 < found.flops / (2 * 512**3 / min(times)) < 5
    assert found.products[rates.dtype_of_training(DEVICE)] == found.flops
    assert all(value > 1e6 for value in (found.bus, found.bus_unpinned, found.memory))


def test_the_rate_of_the_disk_is_read_past_the_systems_cache(folder):
    assert rates.disk() > 1e5
    assert list(folder.iterdir()) == []


def test_plans_use_it_and_say_so(measured, monkeypatch):
    on = "processor" if DEVICE.type == "cpu" else "card"
    said = f"measured on this {on}: 70 TFLOP/s, 11 GB/s from host memory"
    found = machine.machine(DEVICE)
    assert (found.bus, found.bus_unpinned, found.flops) == (FOUND.bus, FOUND.bus_unpinned, FOUND.flops)
    assert fit.here().rates == said
    trainer = new_trainer(brief_flux2(), *tiny_caches(), TrainingSettings(steps=1, rank=2, validation_items=0))
    assert f"{'rates':12} {said}" in trainer.memory.describe().splitlines()
    chosen = trainer.memory.plan
    assert chosen.estimate.compute == pytest.approx(operations(trainer.memory.work, chosen.layout) / FOUND.flops)


def test_a_plan_for_this_card_takes_all_that_is_known_of_it(monkeypatch):
    """Rates, what can be pinned, and which formats have kernels, not the assumptions for cards that are not here."""
    there = Machine(20e9, 40e9, 11e9, 70e12, bus_unpinned=4e9, pinned=5e9)
    monkeypatch.setattr(plan, "start", lambda arguments: None)
    monkeypatch.setattr(machine, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(plans, "available", lambda device: there)
    monkeypatch.setattr(machine, "rates_in_words", lambda device: FOUND.words())
    monkeypatch.setattr(sizes, "dequantises_in_one_step", lambda precision: precision == "nvfp4")
    arguments = parser().parse_args(["plan", "--here", "--flavour", "dev"])
    asked, seconds = plan._asked(arguments)
    assert table.machine_of(arguments.vram, asked) == there
    assert seconds == "seconds: measured on this card, 70 TFLOP/s and 11 GB/s from host memory"
    works = [table.work_of(FLAVOURS["dev"], name, 512, asked).in_one_step for name in ("nvfp4", "int8")]
    assert works == [True, False]

    asked, seconds = plan._asked(parser().parse_args(["plan", "--here", "--bus", "50"]))
    assert (asked.there.bus, asked.there.bus_unpinned, asked.there.flops) == (50e9, 0.0, 70e12)
    assert seconds.startswith("seconds: given, ")


def test_a_plan_for_other_cards_is_assumed():
    asked, seconds = plan._asked(parser().parse_args(["plan"]))
    assert seconds == "seconds: assumed, 50 TFLOP/s and 20 GB/s from host memory"
    there = table.machine_of(24, asked)
    assert (there.vram, there.pinned, there.bus_unpinned) == (24 * 2**30 - table.TAKEN, 32e9, 0.0)


def test_a_product_that_a_device_computes_slowly_is_measured_on_small_matrices():
    """Some processors have no fast fp8: a product of 2048 rows takes ten minutes there."""
    asked = []

    def slow(device, name, side):
        asked.append(side)
        return lambda: time.sleep(0.01 * (side / 128) ** 3)

    found = rates._rate_of(DEVICE, slow, "fp8")
    assert set(asked) == {128} and found == pytest.approx(2 * 128**3 / 0.01, rel=0.5)
