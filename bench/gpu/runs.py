"""Whole runs of nano under ComfyUI's own defaults: a preview in the middle, cut there, taken up from its checkpoint."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.gpu import models
from flux2_train import events
from flux2_train.flavours import FLAVOURS
from flux2_train.host.loading import load
from flux2_train.runs import checkpoints
from flux2_train.runs.checkpoints import About, Snapshot
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.model import ModelSettings
from flux2_train.settings.previews import PreviewSettings, Prompt
from flux2_train.settings.training import TrainingSettings
from flux2_train.train.preview_request import PreviewRequest
from flux2_train.train.trainer import Trainer

STEPS, MIDDLE, PIXELS = 4, 2, 64
PROMPT, PREFIX = "a red square", "diffusion_model."
# Relative difference of the LoRA to that of the run in one piece. On a CPU not a bit. On cards attention's backward
# sums in any order, and AdamW makes much of gradients that are nearly zero.
BOUNDS = {"cpu": 0.0, "other": 0.05}


def run(offload: str) -> dict:
    """The LoRA of a run that is cut and taken up, against that of the same run in one piece.

    Right if they agree, both pictures were painted, all losses are numbers, and the MODEL has its file's weights
    afterwards, bit by bit.
    """
    paths = load.locate_parts(ModelSettings("nano"))
    model, vae = load.load_model(paths[0], ModelSettings("nano")), load.load_vae(paths[2], FLAVOURS["nano"])
    parts = model, models.caches(PIXELS, FLAVOURS["nano"].context, (PROMPT, "")), vae, offload
    whole, received = _trained(*parts)
    with tempfile.TemporaryDirectory() as folder:
        cut, _ = _trained(*parts, until=MIDDLE)
        about = About(cut.step, cut.total, {}, cut.dataset.fingerprint, cut.step_size)
        state = checkpoints.read(Snapshot.of(about, cut.state_dict()).write(Path(folder))).load()
    again, _ = _trained(*parts, state=state)
    error = max(_difference(a, b) for a, b in zip(_matrices(again), _matrices(whole), strict=True))
    bound = BOUNDS.get(model.load_device.type, BOUNDS["other"])
    painted = [event.step for event in received if isinstance(event, events.Previewed)]
    pictures = [p.painted for event in received if isinstance(event, events.Previewed) for p in event.pictures]
    finite = all(map(torch.isfinite, map(torch.tensor, whole.history.losses)))
    checks = {
        "taken up": error <= bound, "previews": painted == [MIDDLE, STEPS] and all(p.std() > 0 for p in pictures),
        "losses": finite and len(whole.history.losses) == STEPS, "given back": _given_back(model, paths[0]),
    }  # fmt: skip
    wrong = [name for name, good in checks.items() if not good]
    return {"right": not wrong, "error": error, "bound": bound, "losses": whole.history.losses,
            "seconds": min(whole.history.seconds), "wrong": wrong,
            "layout": whole.memory.layout_in_words(), "words": f"not as it should be: {wrong}" if wrong else "",
            "warnings": [e.text for e in received if isinstance(e, events.Warned)]}  # fmt: skip


def _trained(model, data, vae, offload: str, until: int = 0, state: dict | None = None) -> tuple[Trainer, list]:
    """The trainer and the events of a run, ended after ``until`` steps if that is not 0, begun with ``state``."""
    config = TrainingSettings(steps=STEPS, rank=4, learning_rate=1e-3, validation_items=0, offload=offload)
    asked = PreviewSettings((Prompt(PROMPT),), width=PIXELS, height=PIXELS, steps=1, every=MIDDLE, at_start=False)
    with torch.inference_mode():
        trainer, received = new_trainer(model, *data, config, previews=PreviewRequest(asked, vae)), []
        if state is not None:
            trainer.load_state_dict(state)
        with closing(trainer.run()) as going:
            for event in going:
                received.append(event)
                if isinstance(event, events.Completed) and event.step == until:
                    break
    return trainer, received


def _matrices(trainer: Trainer) -> list[Tensor]:
    return [p.detach().float().cpu() for p in trainer.adapters.trainable()]


def _difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp_min(1e-12)).item()


def _given_back(model, path: Path) -> bool:
    """Whether the MODEL's weights are those of its file. ComfyUI calls the file's ``scale`` of a norm ``weight``."""
    now = {name.removeprefix(PREFIX): tensor for name, tensor in model.model_state_dict(PREFIX).items()}
    found = {name if name in now else f"{name.removesuffix('scale')}weight": t for name, t in load_file(path).items()}
    return all(torch.equal(now[name].cpu().to(tensor.dtype), tensor) for name, tensor in found.items())
