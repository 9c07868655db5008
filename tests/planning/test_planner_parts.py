"""What adapters of every kind, every optimizer and previews take, against bytes counted, and what the planner says."""

from dataclasses import replace

import pytest
import torch
from counted import META, Live, adapters_on, as_on_cuda, on_meta, step
from support import tiny_flux2

from flux2_train.adapters import targets
from flux2_train.flavours import FLAVOURS
from flux2_train.host.borrowed.borrow import training_mode
from flux2_train.host.borrowed.velocity import Condition, velocity
from flux2_train.planning import planner, weights
from flux2_train.planning.estimate import OPTIMIZER_STATE, blocks_of, estimate, optimizer_bytes, tokens_of
from flux2_train.planning.layout import Layout
from flux2_train.planning.work import Machine, Work
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.base import choices
from flux2_train.settings.optimizer import OptimizerSettings
from flux2_train.settings.previews import PreviewSettings, Prompt
from flux2_train.settings.training import TrainingSettings
from flux2_train.train import plans
from flux2_train.train.building import build_adapters, build_optimizer
from flux2_train.train.preview_request import PreviewRequest

CLOSE = 0.05  # what the planner promises
GB = 10**9
KLEIN = FLAVOURS["klein-4b"]
LAYOUTS = {"blocks": Layout(), "off": Layout("off")}


def plain_work(row, pixels):
    w = weights.of_flavour(row, "bf16")
    return Work(w, planner.lora_sites(w, targets.select(w.linears, "all"), 32), (pixels // 16) ** 2)


def close(found, wanted):
    assert abs(found - wanted) <= CLOSE * wanted, (found / wanted, found, wanted)


def last_norm(work):
    """What is saved after the last block: the copy of the image that the final LayerNorm reads."""
    return work.batch * work.image * work.weights.hidden * work.size


@pytest.mark.drawn
@pytest.mark.long
@pytest.mark.parametrize("mode", ["blocks", "off"])
@pytest.mark.parametrize("kind", [{"dora": True}, {"kind": "loha"}, {"kind": "lokr"},
                                  {"kind": "lokr", "lokr_decompose_both": True}], ids=str)  # fmt: skip
def test_other_adapters_take_what_is_counted(monkeypatch, kind, mode):
    as_on_cuda(monkeypatch)
    model = on_meta(*KLEIN.sizes)
    adapters = adapters_on(model, "all", 16, META, **kind)
    saved, alive = step(model, adapters, 32, 1, LAYOUTS[mode], META)
    sites = {n: (adapters.kept(n), sum(p.numel() for p in adapters.of_layer(n))) for n in adapters.names}
    name = "dora" if kind.get("dora") else kind["kind"]
    work = Work(weights.of_flavour(KLEIN, "bf16"), sites, 1024, kind=name)
    found = estimate(work, LAYOUTS[mode], Machine(80 * GB))
    close(found.parts["activations"] + found.parts["workspace"] + found.parts["gradients"], alive)
    blocks = blocks_of(work, tokens_of(work, LAYOUTS[mode]))
    close(sum(b.inputs if mode == "blocks" else b.kept for b in blocks) + last_norm(work), saved)


def test_the_planner_knows_every_optimizer():
    assert set(OPTIMIZER_STATE) == set(choices(OptimizerSettings, "optimizer"))


@pytest.mark.parametrize("kind", [{}, {"dora": True}, {"kind": "loha"}, {"kind": "lokr"}], ids=str)
@pytest.mark.parametrize("optimizer", choices(OptimizerSettings, "optimizer"))
def test_optimizers_keep_what_is_planned(optimizer, kind):
    if optimizer == "adamw8bit" and not torch.cuda.is_available():
        pytest.skip("adamw8bit works on CUDA only")
    rate = 1.0 if optimizer == "prodigy" else 1e-3
    other = "torch.optim.AdamW" if optimizer == "other" else ""
    chosen = {"adapter": AdapterSettings(**kind), "optimizer": OptimizerSettings(optimizer, other=other)}
    config = TrainingSettings(rank=8, learning_rate=rate, **chosen)
    model = tiny_flux2()
    with training_mode():
        adapters = build_adapters(model, config)
        used = build_optimizer(adapters, config)
    work = plans.work_of(config, model, adapters, 16)
    for parameter in adapters.trainable():
        parameter.grad = torch.ones_like(parameter)
    used.step()
    kept = [value for state in used.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    close(optimizer_bytes(work), sum(value.nbytes for value in kept if value.numel() > 1))


def test_painting_a_preview_takes_what_is_counted(monkeypatch):
    """A pass at four times the size that is trained on. ComfyUI takes guidance's two together only where both fit."""
    as_on_cuda(monkeypatch)
    model, work, side = on_meta(*KLEIN.sizes), plain_work(KLEIN, 512), 64
    with torch.device(META):
        x, text = torch.zeros(1, 128, side, side), torch.zeros(1, 512, KLEIN.context)
        t = torch.full((1,), 0.5)
    with torch.inference_mode(False), torch.no_grad(), Live() as live:
        velocity(model, x, t, [Condition(text)])
    parts = estimate(replace(work, preview=side * side), Layout(), Machine(GB)).parts
    room = sum(parts[name] for name in ("previews", "activations", "workspace"))
    assert live.most <= room <= 2 * live.most


def test_previews_are_planned(nano):
    """Larger than what is trained on they need room of their own; the VAE may take that of the weights."""
    work = plain_work(KLEIN, 512)
    assert estimate(work, Layout(), Machine(GB)).parts["previews"] == 0
    parts = estimate(replace(work, decoding=20 * GB), Layout(), Machine(GB)).parts
    room = sum(parts[name] for name in ("previews", "activations", "workspace", "weights"))
    assert room == 20 * GB  # what is there in all while the VAE decodes
    validation = PreviewRequest(PreviewSettings((Prompt("a"),), width=512, height=256), nano.vae,
                            references=((torch.zeros(2, 64, 32, 3),),))  # fmt: skip
    with training_mode():
        adapters = build_adapters(nano.model, TrainingSettings(rank=1))
    found = plans.work_of(TrainingSettings(rank=1), nano.model, adapters, 16, validation)
    assert found.preview == (512 * 256 + 2 * 64 * 32) // 256
    sizes = sum(p.nbytes for p in nano.vae.first_stage_model.parameters())
    assert found.decoding > sizes + 512 * 256 * 3 * 4  # with the image that comes out in fp32
