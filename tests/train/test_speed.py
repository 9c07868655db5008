"""speed of LoRA Trainer: what 'certified' chooses and says, what a resumed run keeps, and that 'exact' is as ever."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from support import brief_flux2, same, tiny_caches
from test_compile import SHORT, lora, said, train

from flux2_train import events
from flux2_train.flavours import FLAVOURS
from flux2_train.host.borrowed import int8
from flux2_train.host.borrowed.borrow import linears
from flux2_train.planning import certifying
from flux2_train.planning.activations import Tokens
from flux2_train.planning.estimate import blocks_of
from flux2_train.planning.planner import needed
from flux2_train.planning.weights import of_flavour
from flux2_train.planning.work import AT_ONCE, Work
from flux2_train.runs import session
from flux2_train.runs.checkpoint_lora import write_lora
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.saving import SaveSettings
from flux2_train.train.speed import products as of_speed

FAST, CERTIFIED = replace(SHORT, speed="fast"), replace(SHORT, speed="certified")
LAYERS = 12
BAD = "double_blocks.0.img_mlp.2"


@pytest.fixture
def parts():
    return brief_flux2(), *tiny_caches()


@pytest.fixture
def faster(monkeypatch):
    """8 bits are twice as fast as exact products, whatever such small ones take here."""
    monkeypatch.setattr(of_speed, "gain", lambda exact, other: 2.0)


def products(received):
    """What the plans of a run say of its products, each once."""
    lines = [line for text in said(received, events.Planned) for line in text.splitlines()]
    return list(dict.fromkeys(line[13:] for line in lines if line.startswith("products ")))


def test_exact_says_nothing_and_keeps_its_state(parts):
    exact, received = train(parts, SHORT)
    assert not products(received) and "products" not in exact.state_dict() and exact.memory.how.eight_bit is None
    fast, received = train(parts, FAST)
    assert products(received) == [f"8-bit products in {LAYERS} of {LAYERS} layers"]
    assert not same(lora(exact), lora(fast))
    for name, value in lora(exact).items():
        assert (lora(fast)[name] - value).norm() <= 0.2 * value.norm()


def test_a_comparison_that_chooses_nothing_leaves_every_bit(parts, monkeypatch):
    """Also with dropout, accumulation and several micro-batches: the steps draw as if nothing had been compared."""
    monkeypatch.setattr(of_speed, "gain", lambda exact, other: 1.01)
    config = replace(CERTIFIED, batch=2, accumulate=2, adapter=AdapterSettings(dropout=0.3),
                     memory=MemorySettings(micro_batch=1), preservation=1.0)  # fmt: skip
    certified, received = train(parts, config)
    exact, _ = train(parts, replace(config, speed="exact"))
    assert same(lora(certified), lora(exact)) and certified.history.losses == exact.history.losses
    assert torch.equal(certified.generator.get_state(), exact.generator.get_state())
    assert products(received)[0] == "exact products until 8 bits are compared with them"
    assert products(received)[1].startswith("exact products: 8 bits take ") and len(products(received)) == 2


def test_the_cosine_it_states_is_that_of_the_first_steps_gradients(parts, faster, monkeypatch):
    taken = {}
    for speed in ("exact", "fast"):
        trainer = new_trainer(*parts, replace(SHORT, steps=1, speed=speed))
        step = trainer.optimizer.step
        monkeypatch.setattr(trainer.optimizer, "step", lambda *_, step=step, trainer=trainer, speed=speed: (
            taken.setdefault(speed, torch.cat([p.grad.flatten().double() for p in trainer.adapters.trainable()])),
            step()))  # fmt: skip
        with torch.inference_mode():
            list(trainer.run())
    cosine = torch.cosine_similarity(taken["exact"], taken["fast"], dim=0).item()
    trainer, received = train(parts, replace(CERTIFIED, steps=1))
    assert products(received)[1] == (
        f"8-bit products in {LAYERS} of {LAYERS} layers, cosine of the gradient {cosine:.4f}, 2 times as fast"
    )
    assert trainer.memory.products.choice.whole.cosine == pytest.approx(cosine, abs=1e-6)
    error = (taken["fast"] - taken["exact"]).norm() / taken["exact"].norm()
    assert trainer.memory.products.choice.whole.error == pytest.approx(error.item(), rel=1e-3)
    assert "comparing 8-bit products with exact ones" in said(received, events.Phase)


def outlier(model, larger):
    """One input channel of a layer is so many times as large, and its weights are as much smaller."""
    before, layer = linears(model)["double_blocks.0.img_mlp.0"], linears(model)[BAD]
    with torch.inference_mode():
        before.weight[-1] *= larger  # of the half that multiplies the activation
        layer.weight[:, -1] /= larger
    return model


def test_a_layer_with_a_huge_channel_stays_exact_and_a_resumed_run_keeps_that(faster):
    """Rotation spreads it among the 64 numbers of its group, which then are far larger than the other groups'."""
    parts = outlier(brief_flux2(), 1000), *tiny_caches()
    trainer, received = train(parts, CERTIFIED)
    chosen = trainer.memory.products.choice.layers
    assert BAD not in chosen and len(chosen) >= LAYERS - 2
    assert products(received)[1].startswith(f"8-bit products in {len(chosen)} of {LAYERS} layers, cosine of the ")
    resumed, received = train(parts, replace(CERTIFIED, steps=4), trainer.state_dict())
    assert resumed.memory.products.choice == trainer.memory.products.choice and resumed.step == 4
    assert products(received) == [trainer.memory.products.sentence]  # nothing is compared again
    straight, _ = train(parts, replace(CERTIFIED, steps=4))
    assert same(lora(resumed), lora(straight))
    state = trainer.state_dict()
    state["products"]["choice"]["weights"] = "fp8 (scaled)"  # as if the run had begun with other weights
    _, received = train(parts, replace(CERTIFIED, steps=4), state)
    assert products(received)[0] == "exact products until 8 bits are compared with them"


@pytest.mark.parametrize("rotates", [True, False])
def test_a_large_channel_keeps_no_layer_exact_because_rows_are_rotated(faster, monkeypatch, rotates):
    """Without rotation it does."""
    if not rotates:
        monkeypatch.setattr(int8, "group_of", lambda width: 0)
    trainer, _ = train((outlier(brief_flux2(), 64), *tiny_caches()), replace(CERTIFIED, steps=1))
    assert (BAD in trainer.memory.products.choice.layers) == rotates


@pytest.mark.long
def test_layers_are_given_back_until_the_whole_gradient_is_close(parts, faster, monkeypatch):
    """The bound lies between the error of all layers and that of the best."""
    whole = train(parts, replace(CERTIFIED, steps=1))[0].memory.products.choice.whole
    monkeypatch.setattr(of_speed, "WHOLE_ERROR", 0.9 * whole.error)
    trainer, received = train(parts, replace(CERTIFIED, steps=1))
    choice = trainer.memory.products.choice
    assert 0 < len(choice.layers) < LAYERS and choice.whole.error <= 0.9 * whole.error
    monkeypatch.setattr(of_speed, "WHOLE_COSINE", 1.0)
    trainer, received = train(parts, replace(CERTIFIED, steps=1))
    whole = trainer.memory.products.choice.whole
    assert not trainer.memory.products.choice.layers and 0.999 < whole.cosine < 1
    told = f"exact products: in 8 bits the cosine of the gradient is {whole.cosine:.4f}"
    assert products(received)[1].startswith(told)
    monkeypatch.setattr(certifying, "LAYER_ERROR", 1e-6)
    _, received = train(parts, replace(CERTIFIED, steps=1))
    assert products(received)[1] == f"exact products: the error of 8 bits is within the bounds in 0 of {LAYERS} layers"


def test_where_8_bits_cannot_be_used_the_run_says_so_and_has_the_bits_of_exact(parts, monkeypatch):
    exact, _ = train(parts, SHORT)
    monkeypatch.setattr(int8, "problem", lambda device: "RuntimeError: no such product")
    trainer, received = train(parts, CERTIFIED)
    assert said(received, events.Warned) == [
        "Products are exact, and the run goes on as with speed 'exact': the device has no products of int8 matrices "
        "(RuntimeError: no such product)."
    ]
    assert products(received) == [
        "exact products: the device has no products of int8 matrices (RuntimeError: no such product)"]  # fmt: skip
    assert same(lora(trainer), lora(exact))
    monkeypatch.undo()
    awq = brief_flux2(format="nvfp4_awq"), *parts[1:]
    _, received = train(awq, FAST)
    assert "the MODEL has no layer that could be multiplied in 8 bits" in said(received, events.Warned)[0]


def test_a_gradient_that_is_not_finite_decides_nothing(parts, faster, monkeypatch):
    gradient, calls = of_speed.Products.certify, []

    def spoilt(self, own, accelerator):
        def once():
            found, seconds = own()
            calls.append(len(calls))
            return ([each * torch.nan for each in found] if len(calls) == 1 else found), seconds

        yield from gradient(self, once, accelerator)

    monkeypatch.setattr(of_speed.Products, "certify", spoilt)
    trainer, received = train(parts, CERTIFIED)
    assert said(received, events.Phase).count("comparing 8-bit products with exact ones") == 2
    assert trainer.memory.products.choice is not None


@pytest.mark.long
def test_int8_numbers_are_kept_as_long_as_there_is_room(parts):
    """The plan counts them. A smaller layout does without; so does a plan that streams, or a limit without room."""
    trainer = new_trainer(*parts, FAST)
    memory, own = trainer.memory, trainer.memory.how.eight_bit
    assert own.keeps and memory.plan.estimate.parts["int8 copies"] == own.copies > 0
    assert "int8 copies" in memory.describe()
    exact = new_trainer(*parts, SHORT).memory.plan.estimate
    assert memory.plan.estimate.peak >= exact.peak + own.copies
    memory._adopt(memory.plan)
    assert not own.keeps
    memory.plan = replace(memory.plan, estimate=exact)
    for share, keeps in ((0.9, False), (1.1, True)):
        memory.machine = replace(memory.machine, vram=needed(exact) + share * own.copies)
        memory._keep_int8()
        assert own.keeps == keeps == ("int8 copies" in memory.plan.estimate.parts)
    streamed = replace(FAST, memory=MemorySettings(blocks_to_swap=1))
    assert not new_trainer(*parts, streamed).memory.how.eight_bit.keeps
    for config in (SHORT, streamed):
        assert "int8 copies" not in new_trainer(*parts, config).memory.plan.estimate.parts


def test_the_plan_counts_what_is_converted_at_a_time():
    """Beside the dequantised weight, where that is most of what a block takes."""
    exact = Work(of_flavour(FLAVOURS["klein-9b"], "fp8 (scaled)"), {}, 64, precision="fp8 (scaled)")
    eight_bit, block = replace(exact, eight_bit=True), Tokens(1, 64, 16)
    wide = 4096 * 36864  # a single block's first Linear
    added = [b.top - a.top for a, b in zip(blocks_of(exact, block), blocks_of(eight_bit, block), strict=True)]
    assert max(added) == wide + 13 * AT_ONCE and min(added) > 0


def test_report_and_lora_say_it(parts, faster, tmp_path):
    trainer = new_trainer(*parts, CERTIFIED)
    with torch.inference_mode():
        results = session.train(trainer, tmp_path / "loras", tmp_path / "runs", lambda event: None)
    sentence = trainer.memory.products.sentence
    assert sentence.startswith(f"8-bit products in {LAYERS} of {LAYERS} layers, cosine of the gradient 0.99")
    report = json.loads((results.folder / "report.json").read_text())
    assert report["products"] == sentence and f"products     {sentence}" in report["plan"]
    with safe_open(results.lora_path, "pt") as file:
        assert file.metadata()["flux2_train.products"] == sentence
    (checkpoint,) = (results.folder / "checkpoints").glob("*.safetensors")
    with torch.inference_mode():
        write_lora(parts[0], checkpoint, tmp_path / "again.safetensors", SaveSettings())
    with safe_open(tmp_path / "again.safetensors", "pt") as file:
        assert file.metadata()["flux2_train.products"] == sentence


def test_validation_is_exact(parts, monkeypatch):
    """The loss at fixed noise before the first step is the same to the last bit; steps are not."""
    config = replace(SHORT, validation_items=2)
    losses = []
    for speed in ("exact", "fast"):
        trainer = new_trainer(*parts, replace(config, speed=speed))
        with torch.inference_mode():
            list(trainer.run())
        losses.append((trainer.history.validation.get(0), trainer.history.losses[0]))
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]
