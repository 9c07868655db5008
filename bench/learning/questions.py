"""The questions of the bench. A question has settings; each has a name and says what it changes in the demo's job.

A change is written as for the command ``train --set``; a name without a section is one of ``training``. Five more are
the bench's own: ``pictures=N`` (16), ``trainer=node`` (ComfyUI's TrainLoraNode instead of LoRA Trainer) or
``diffusers`` (with peft), ``recipe=none``, which leaves LoRA Trainer as it comes, but for the steps,
``validate=N``, which measures the validation loss every N steps, and ``sample=PRECISION``: the base model's weights are
rounded to it before the LoRA paints.
"""

from __future__ import annotations

Settings = dict[str, tuple[str, ...]]

# Differential guidance s pushes the target s times as far, so gradients are s times as large. With s times the
# preservation and s times the clipping limit, settings differ in nothing but the guidance.
EQUAL_UPDATE = ("training.optimizer.max_grad_norm=3", "preservation=1.5")
EACH_STEP = ("preservation=1", "training.preservation_options.every=1")
LOKR = ("training.adapter.kind=lokr",)
# With half of nano's few tokens routed past the middle blocks a step takes 0.91 of the time (on an idle core).
AS_LONG = 330
QUESTIONS: dict[str, Settings] = {
    "trainer": {
        "the demo": (), "as it comes": ("recipe=none", "learning_rate=1e-3"),
        "TrainLoraNode, 5e-4": ("trainer=node", "learning_rate=5e-4"),
        "TrainLoraNode, 2e-3": ("trainer=node", "learning_rate=2e-3"),
        "diffusers + peft, 1e-3": ("trainer=diffusers", "learning_rate=1e-3"),
    },
    "preservation": {
        "off": ("preservation=0",), "class 0.5": (), "class 1": ("preservation=1",), "class 3": ("preservation=3",),
        "blank 0.5": ("training.preservation_options.kind=blank",),
        "class 1, in each step": EACH_STEP,
    },
    "guidance": {"1": (), "3": ("differential_guidance=3", *EQUAL_UPDATE)},
    "rate": {
        "3e-4": ("learning_rate=3e-4",), "1e-3": ("learning_rate=1e-3",), "2e-3": (), "5e-3": ("learning_rate=5e-3",),
    },
    "schedule": {
        "constant": (), "cosine": ("training.optimizer.schedule=cosine",),
        "prodigy": ("training.optimizer.optimizer=prodigy", "learning_rate=1"),
        "schedule-free": ("training.optimizer.optimizer=schedulefree",),
    },
    "adapter": {
        "rank 4": ("rank=4",), "rank 16": (), "rank 64": ("rank=64",), "alpha 4": ("alpha=4",),
        "rsLoRA": ("alpha=64",), "dora": ("training.adapter.dora=true",), "lokr": LOKR,
        "lokr, 1e-2": (*LOKR, "learning_rate=1e-2"), "lokr, 3e-2": (*LOKR, "learning_rate=3e-2"),
    },
    "layers": {"all": (), "attention": ("targets=attention",), "mlp": ("targets=mlp",), "tiny": ("targets=tiny",)},
    "times": {
        "sigmoid": (), "uniform": ("training.timesteps.distribution=uniform",),
        "weighted": ("training.timesteps.distribution=weighted",),
        "no shift": ("training.timesteps.shift=none",), "high noise": ("training.timesteps.bias=high noise",),
    },
    "captions": {"no dropout": (), "dropout 0.1": ("dataset.caption_options.dropout=0.1",)},
    "ema": {"off": (), "0.9": ("training.ema.ema_decay=0.9",), "0.97": ("training.ema.ema_decay=0.97",)},
    "passes": {
        "plain": EACH_STEP, "half of the tokens": (*EACH_STEP, "training.routing.selection_ratio=0.5"),
        "half of the tokens, as long": (*EACH_STEP, "training.routing.selection_ratio=0.5", f"steps={AS_LONG}"),
        "scheduled sampling 0.3": (*EACH_STEP, "training.rollout.probability=0.3"),
    },
    "precision": {
        "as in file": (), "fp8": ("model.precision=fp8 (scaled)",), "int8": ("model.precision=int8",),
        "nvfp4": ("model.precision=nvfp4",), "sampled in fp8": ("sample=fp8 (scaled)",),
        "sampled in int8": ("sample=int8",), "sampled in nvfp4": ("sample=nvfp4",),
        "nvfp4 in both": ("model.precision=nvfp4", "sample=nvfp4"),
    },
    "speed": {"exact": (), "certified": ("speed=certified",), "fast": ("speed=fast",)},
    "pictures": {f"{count}": (f"pictures={count}",) for count in (5, 10, 20, 40)},
}  # fmt: skip
STANDARD = ("trainer", "rate")
