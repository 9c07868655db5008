"""Every two options together on nano: three steps with finite losses, checkpointing or not, and right gradients."""

import math
import random
from contextlib import closing
from dataclasses import replace
from itertools import combinations

import comfy.ldm.flux.layers
import comfy.ldm.flux.math
import pytest
import torch

from flux2_train.config import TrainConfig
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.host import files, load
from flux2_train.host.borrow import borrow, training_mode
from flux2_train.run.trainer import Trainer

BASE = TrainConfig(steps=3, rank=2, targets="tiny", learning_rate=1e-3, validation_items=0, batch=2)
OPTIONS = {
    "uniform": {"timesteps.distribution": "uniform"}, "weighted": {"timesteps.distribution": "weighted"},
    "beta": {"timesteps.distribution": "beta"}, "mode": {"timesteps.distribution": "mode"},
    "curve": {"timesteps.distribution": "curve", "timesteps.values": (0.0, 1.0, 3.0)},
    "list": {"timesteps.distribution": "list", "timesteps.values": (0.9, 0.5, 0.3)},
    "round robin": {"timesteps.distribution": "round robin", "timesteps.values": (0.9, 0.5, 0.3)},
    "empirical shift": {"timesteps.shift": "empirical"}, "constant shift": {"timesteps.shift": "constant"},
    "high noise": {"timesteps.bias": "high noise"}, "limits": {"timesteps.least": 0.2, "timesteps.most": 0.9},
    "strata": {"timesteps.strata": 4}, "bell": {"timesteps.weighting": "bell"},
    "sigma_sqrt": {"timesteps.weighting": "sigma_sqrt"}, "mae": {"loss.kind": "mae"},
    "huber": {"loss.kind": "huber", "loss.width_schedule": "snr"}, "smooth_l1": {"loss.kind": "smooth_l1"},
    "wavelet": {"loss.kind": "wavelet"}, "clamp": {"loss.most": 100.0}, "cfg": {"guide.cfg": 3.0},
    "contrastive": {"guide.contrastive": 3.0, "guide.contrastive_schedule": "sigma", "guide.contrastive_project": True},
    "differential": {"differential_guidance": 3.0}, "preservation": {"preservation": 1.0},
    "blank": {"preservation": 1.0, "preserve.kind": "blank"},
    "together": {"preservation": 1.0, "preserve.together": True}, "every": {"preservation": 1.0, "preserve.every": 2},
    "lion": {"optimizer.name": "lion"}, "adafactor": {"optimizer.name": "adafactor"},
    "schedulefree": {"optimizer.name": "schedulefree"}, "cosine": {"optimizer.schedule": "cosine"},
    "warmup": {"optimizer.warmup": 0.5}, "block rates": {"optimizer.block_rates": (("double_blocks", 0.1),)},
    "ema": {"ema.decay": 0.9}, "accumulate": {"accumulate": 2}, "no clipping": {"optimizer.max_grad_norm": 0.0},
    "dora": {"adapter.dora": True}, "lora_plus": {"adapter.lora_plus": 4.0}, "dropout": {"adapter.dropout": 0.2},
}  # fmt: skip
PAIRS = list(combinations(OPTIONS, 2))
DRAWN = 3


def config_of(*names) -> TrainConfig:
    """The settings of these options together; the later wins where both set the same. Raises UserError as users see."""
    flat, sections = {}, {}
    for name in names:
        for path, value in OPTIONS[name].items():
            section, _, field = path.rpartition(".")
            (sections.setdefault(section, {}) if section else flat)[field] = value
    return replace(BASE, **flat, **{s: replace(getattr(BASE, s), **fields) for s, fields in sections.items()})


@pytest.fixture(scope="module")
def nano64():
    """nano in float64, and core's rotary angles too, which it rounds whatever the model's dtype."""
    row, rope = FLAVOURS["nano"], comfy.ldm.flux.math.rope
    with torch.inference_mode():
        model = load.load_transformer(files.locate(row.transformer_files("auto")))
    model.model.diffusion_model.double()
    model.model.diffusion_model.dtype = torch.float64
    model.model.manual_cast_dtype = None
    comfy.ldm.flux.layers.rope = lambda *args: rope(*args).double()
    yield model
    comfy.ldm.flux.layers.rope = rope


def trained(nano, robot, config):
    trainer = Trainer(nano.model, robot.embeds, robot.latents, config)
    with torch.inference_mode(), closing(trainer.run()) as run:
        list(run)
    assert len(trainer.history.losses) == 3 and all(map(math.isfinite, trainer.history.losses))
    return [p.detach().clone() for p in trainer.adapters.trainable()]


def in_float64(trainer):
    """A trainer's adapters in float64, no longer zero anywhere; and its samples."""
    generator = torch.Generator().manual_seed(2)
    for p in trainer.adapters.trainable():
        p.data = p.data.double() + 0.05 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    trainer.blank = trainer.blank.double()
    return [replace(s, embeds=s.embeds.double(), class_embeds=s.class_embeds.double()) for s in trainer.samples]


def check_gradients(nano64, robot, config):
    """Along one random direction of all parameters, against a difference quotient that keeps what is frozen."""
    trainer = Trainer(nano64, robot.embeds, robot.latents, config)
    samples = in_float64(trainer)
    batch = [s for s in samples if s.shape == samples[0].shape][:1]
    parameters = trainer.adapters.trainable()
    swap = borrow(nano64, trainer.adapters.deltas(), config.checkpointing)
    with torch.inference_mode(), swap as borrowed, training_mode():
        objective, case = trainer.objective(borrowed), trainer._case(batch, *trainer._draw(batch))
        case = replace(case, x_t=case.x_t.double(), target=case.target.double())
        memos = [{} for _ in objective.parts(1)]

        def loss():
            return sum(part(case, memo).loss.sum() for part, memo in zip(objective.parts(1), memos, strict=True))

        gradients = torch.autograd.grad(loss(), parameters)
        generator = torch.Generator().manual_seed(3)
        directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        if config.adapter.dora:  # its norm is taken without gradient, so only the magnitudes' quotients are gradients
            free = {id(p) for p in trainer.adapters.magnitudes.parameters()}
            directions = [d * (id(p) in free) for p, d in zip(parameters, directions, strict=True)]
        exact = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
        values, step = [], 1e-5
        with torch.no_grad():
            for sign in (1, -2):
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(sign * step * d)
                values.append(loss().item())
    assert exact == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-4)


def test_two_options_together(nano, nano64, robot, full_size):
    seed = random.randrange(10**6)
    print(f"pairs drawn with seed {seed}")
    for first, second in PAIRS if full_size else random.Random(seed).sample(PAIRS, DRAWN):
        try:
            config = config_of(first, second)
        except UserError as error:  # two that are refused together say so
            print(f"{first} + {second}: {error}")
            continue
        print(f"{first} + {second}")
        kept, recomputed = (trained(nano, robot, replace(config, checkpointing=c)) for c in (False, True))
        assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True)), (first, second)
        check_gradients(nano64, robot, replace(config, checkpointing=True))


def test_only_what_excludes_each_other_is_refused():
    refused = set()
    for pair in PAIRS:
        try:
            config_of(*pair)
        except UserError:
            refused.add(frozenset(pair))
    assert refused == {
        frozenset(pair) for pair in (
            ("cfg", "contrastive"), ("weighted", "bell"), ("weighted", "sigma_sqrt"), ("schedulefree", "cosine"),
        )
    }  # fmt: skip
