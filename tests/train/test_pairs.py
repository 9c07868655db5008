"""Every two options together on nano: steps with finite losses, checkpointing or not, and right gradients.

All learn from the same data: masks, references, and regularisation images that keep the base model's prediction. A
slider of pairs has no such images.
"""

import math
from contextlib import closing
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import comfy.ldm.flux.layers
import comfy.ldm.flux.math
import pytest
import torch
from support import chance, inputs_of, with_few_words

from flux2_train.data.dataset import Mask, Source
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.host.loading import files, load
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.training import TrainingSettings
from flux2_train.train.slider import strength_of

BASE = TrainingSettings(steps=3, rank=2, targets="tiny", learning_rate=1e-3, validation_items=0, batch=2)
POSITIVE, NEGATIVE = "zbot robot waving on a sandy desert", "zbot robot jumping on a night street"
OPTIONS = {
    "uniform": {"timesteps.distribution": "uniform"}, "weighted": {"timesteps.distribution": "weighted"},
    "beta": {"timesteps.distribution": "beta"}, "mode": {"timesteps.distribution": "mode"},
    "curve": {"timesteps.distribution": "curve", "timesteps.values": (0.0, 1.0, 3.0)},
    "list": {"timesteps.distribution": "list", "timesteps.values": (0.9, 0.5, 0.3)},
    "round robin": {"timesteps.distribution": "round robin", "timesteps.values": (0.9, 0.5, 0.3)},
    "empirical shift": {"timesteps.shift": "empirical"}, "constant shift": {"timesteps.shift": "constant"},
    "high noise": {"timesteps.bias": "high noise"}, "limits": {"timesteps.min": 0.2, "timesteps.max": 0.9},
    "strata": {"timesteps.strata": 4}, "sigma_sqrt": {"timesteps.weighting": "sigma_sqrt"},
    "cosmap": {"timesteps.weighting": "cosmap"}, "bell": {"timesteps.weighting": "bell"},
    "table": {"timesteps.weighting": "table", "timesteps.weights": (1.0, 2.0)},
    "mae": {"loss.loss": "mae"}, "huber": {"loss.loss": "huber", "loss.huber_schedule": "snr"},
    "smooth_l1": {"loss.loss": "smooth_l1", "loss.huber_schedule": "exponential"},
    "wavelet": {"loss.loss": "wavelet"}, "clamp": {"loss.loss_max": 100.0}, "cfg": {"guidance.true_cfg": 3.0},
    "contrastive": {"guidance.contrastive_guidance": 3.0, "guidance.contrastive_schedule": "sigma",
    "guidance.contrastive_project": True},
    "clean references": {"guidance.references": "index_timestep_zero"},
    "differential": {"differential_guidance": 3.0}, "preservation": {"preservation": 1.0},
    "blank": {"preservation": 1.0, "preservation_options.kind": "blank"},
    "together": {"preservation": 1.0, "preservation_options.together": True}, "every": {"preservation": 1.0,
    "preservation_options.every": 2},
    "outside mask": {"preservation_options.outside_mask": 0.5},
    "lion": {"optimizer.optimizer": "lion"}, "adafactor": {"optimizer.optimizer": "adafactor"},
    "schedulefree": {"optimizer.optimizer": "schedulefree"}, "prodigy": {"optimizer.optimizer": "prodigy",
    "learning_rate": 1.0},
    "muon": {"optimizer.optimizer": "other", "optimizer.other": "torch.optim.Muon"},
    "cosine": {"optimizer.schedule": "cosine"}, "rex": {"optimizer.schedule": "rex"},
    "warmup": {"optimizer.warmup": 0.5}, "block rates": {"optimizer.block_rates": (("double_blocks.*", 0.1),)},
    "ema": {"ema.ema_decay": 0.9}, "accumulate": {"accumulate": 2}, "no clipping": {"optimizer.max_grad_norm": 0.0},
    "rslora": {"adapter.rslora": True}, "dora": {"adapter.dora": True}, "loha": {"adapter.kind": "loha"},
    "lokr": {"adapter.kind": "lokr"}, "lora_plus": {"adapter.lora_plus": 4.0}, "dropout": {"adapter.dropout": 0.2},
    "routing": {"routing.selection_ratio": 0.5, "routing.start_layer_idx": 1, "routing.end_layer_idx": -2,
    "routing.until": 100.0, "routing.keep_mask": True},
    "sampled": {"rollout.probability": 1.0, "rollout.max_offset": 2, "rollout.inference_steps": 4},
    "reflexflow": {"rollout.probability": 1.0, "rollout.reflexflow": True, "rollout.sampler": "heun"},
    "fp32 adapters": {"adapter.compute": "fp32"},
    "slider": {"slider.slider": "prompts", "slider.positive": POSITIVE, "slider.negative": NEGATIVE},
    "slider of pairs": {"slider.slider": "pairs"},
}  # fmt: skip
if not hasattr(torch.optim, "Muon"):  # which came with torch 2.9
    del OPTIONS["muon"]
PAIRS = list(combinations(OPTIONS, 2))
REFUSED = {
    frozenset(pair) for pair in (
        ("cfg", "contrastive"), *(("weighted", w) for w in ("sigma_sqrt", "cosmap", "bell", "table")),
        ("schedulefree", "cosine"), ("schedulefree", "rex"), ("prodigy", "block rates"), ("prodigy", "lora_plus"),
        ("muon", "dora"),
        *(
            (slider, w)
            for slider in ("slider", "slider of pairs")
            for w in ("cfg", "contrastive", "differential", "together", "outside mask", "sampled", "reflexflow")
        ),
        *((kind, of_lora) for kind in ("loha", "lokr") for of_lora in ("rslora", "dora", "lora_plus")),
    )
}  # fmt: skip


def config_of(*names) -> TrainingSettings:
    """The settings of these options together; the later wins where both set the same. Raises UserError as users see."""
    flat, sections = {}, {}
    for name in names:
        for path, value in OPTIONS[name].items():
            section, _, field = path.rpartition(".")
            (sections.setdefault(section, {}) if section else flat)[field] = value
    return replace(BASE, **flat, **{s: replace(getattr(BASE, s), **fields) for s, fields in sections.items()})


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.fixture(scope="module")
def nano32(brief_nano):
    return brief_nano.model


@pytest.fixture(scope="module")
def nano64(comfy_folders, patch):
    """nano in float64, and core's rotary angles too, which it rounds whatever the model's dtype."""
    row, rope = FLAVOURS["nano"], comfy.ldm.flux.math.rope
    with torch.inference_mode():
        model = load.load_transformer(files.locate(row.transformer_files("auto")))
    model.model.diffusion_model.double()
    model.model.diffusion_model.dtype = torch.float64
    model.model.manual_cast_dtype = None
    patch.setattr(comfy.ldm.flux.layers, "rope", lambda *args: rope(*args).double())
    return with_few_words(model)


@pytest.fixture(scope="module")
def caches(robot):
    """Both caches of six images: each its own reference, masks on four, two that keep the base model's prediction."""
    masks, grids = {}, dict(robot.latents.latents)
    generator = torch.Generator().manual_seed(4)
    for item in robot.dataset.items[:4]:
        mask = masks[item] = Mask(item.view, alpha=True)
        values = torch.rand(1, 1, *item.view.latent_shape[2:], generator=generator)
        grids[mask] = values / values.mean()
    items = tuple(
        replace(item, references=(item.view,), mask=masks.get(item), source=number // 4)
        for number, item in enumerate(robot.dataset.items)
    )
    keeping = Source(Path(), is_reg=True, base_target=True)
    dataset = replace(robot.dataset, items=items, sources=(*robot.dataset.sources, keeping))
    return replace(robot.embeds, dataset=dataset), replace(robot.latents, dataset=dataset, latents=grids)


def of_pairs(caches):
    """The caches of the taught images whose shape another one shares, which becomes their reference."""
    embeds, latents = caches
    taught = [item.view for item in embeds.dataset.items[:4]]

    def other(view):
        return next((v for v in taught if v != view and v.latent_shape == view.latent_shape), None)

    items = tuple(replace(i, references=(other(i.view),)) for i in embeds.dataset.items[:4] if other(i.view))
    dataset = replace(embeds.dataset, items=items, sources=embeds.dataset.sources[:1])
    return replace(embeds, dataset=dataset), replace(latents, dataset=dataset)


def trained(nano, caches, config):
    trainer = new_trainer(nano, *caches, config)
    with torch.inference_mode(), closing(trainer.run()) as run:
        list(run)
    assert len(trainer.history.losses) == config.steps and all(map(math.isfinite, trainer.history.losses))
    return [p.detach().clone() for p in trainer.adapters.trainable()]


def in_float64(trainer):
    """A trainer's adapters in float64, no longer zero anywhere; and its samples."""
    generator = torch.Generator().manual_seed(2)
    for p in trainer.adapters.trainable():
        p.data = p.data.double() + 0.05 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    trainer.blank = trainer.blank.double()
    trainer.slider = {name: embeds.double() for name, embeds in trainer.slider.items()}
    return [replace(s, embeds=s.embeds.double(), class_embeds=s.class_embeds.double()) for s in trainer.samples]


def check_gradients(nano64, caches, config):
    """Along one random direction of all parameters, against a difference quotient that keeps what is frozen.

    That is what the step's memo holds, DoRA's norms, and which inputs drop out. Adapters that compute in fp32 would
    round more than the quotient's step changes, so here they compute in float64 like the rest.
    """
    config = replace(config, adapter=replace(config.adapter, compute="model"))
    trainer = new_trainer(nano64, *caches, config)
    taught, *others = in_float64(trainer)
    like = [s for s in others if s.latent.shape == taught.latent.shape]
    batch = [taught, next((s for s in like if s.is_reg), like[0])]
    parameters = trainer.adapters.trainable()
    swap = borrow(nano64, trainer.adapters.deltas(), True)
    with torch.inference_mode(), swap as borrowed, training_mode(), trainer.adapters.unchanging():
        objective = trainer.objective(borrowed)
        case = inputs_of(trainer, batch, objective)
        doubled = {name: value.double() for name in ("x_t", "target", "on_path")
                   if (value := getattr(case, name)) is not None}  # fmt: skip
        case = replace(case, **doubled)
        parts = objective.parts(6)  # the loss of every option, also of those that act in every second or third step
        memos = [{} for _ in parts]

        def evaluate_part(part, memo, differentiate):
            with trainer.adapters.at_strength(strength_of(part)):
                loss = part(case, memo).loss.sum()
                return torch.autograd.grad(loss, parameters) if differentiate else loss.item()

        def evaluate(differentiate=False):
            with trainer.adapters.dropping(seed=0, step=1):
                each = [evaluate_part(*one, differentiate) for one in zip(parts, memos, strict=True)]
                return [sum(gradients) for gradients in zip(*each, strict=True)] if differentiate else sum(each)

        gradients = evaluate(differentiate=True)
        generator = torch.Generator().manual_seed(3)
        directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        exact = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
        # So small because of mae: where an element's error changes its sign between the two, the quotient is wrong.
        values, step = [], 1e-7
        with torch.no_grad():
            for sign in (1, -2):
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(sign * step * d)
                values.append(evaluate())
    # A hundred roundings in a row, of 2^-53 each, in both losses; what the step leaves out is some 1e-14.
    rounding = 100 * 2**-53 * max(map(abs, values)) / step
    assert exact == pytest.approx((values[0] - values[1]) / (2 * step), abs=rounding)


def drawn_pairs() -> list[tuple[str, str]]:
    """Each option once, with a partner that chance gives it."""
    order = list(OPTIONS)
    chance("pairs").shuffle(order)
    return list(zip(order[::2], [*order[1::2], *order[: len(order) % 2]], strict=True))


def objective_of(config) -> TrainingSettings:
    """The settings that a gradient depends on: without those that say what is done with it."""
    of_steps = ("learning_rate", "accumulate", "optimizer", "ema")
    adapter = replace(config.adapter, lora_plus=1.0)
    return replace(config, adapter=adapter, **{name: getattr(BASE, name) for name in of_steps})


def check_pair(nano32, nano64, caches, pair, steps, checked):
    """Gradients are compared too, unless ``checked``, what they were compared for already, is None."""
    caches = of_pairs(caches) if "slider of pairs" in pair else caches
    if frozenset(pair) in REFUSED:
        with pytest.raises(UserError):
            new_trainer(nano32, *caches, config_of(*pair))
        return
    config = replace(config_of(*pair), steps=steps)
    kept, recomputed = (trained(nano32, caches, replace(config, checkpointing=c)) for c in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True)), pair
    if checked is not None and objective_of(config) not in checked:
        check_gradients(nano64, caches, objective_of(config))
        checked.append(objective_of(config))


@pytest.mark.long
def test_two_options_together(nano32, nano64, caches, full_size):
    failures, checked = [], []
    for number, pair in enumerate(PAIRS if full_size else drawn_pairs()):
        print(" + ".join(pair))
        steps, known = (BASE.steps, checked) if full_size else (2, checked if number % 2 else None)
        try:
            check_pair(nano32, nano64, caches, pair, steps, known)
        except Exception as error:  # one bad pair shall not hide the others
            failures.append(f"{' + '.join(pair)}: {type(error).__name__} {error}"[:300])
            print(failures[-1])
    assert not failures, "\n".join(failures)
