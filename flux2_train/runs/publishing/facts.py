"""What a model card says of a run: read from the run's files, with no path of this computer in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ... import __version__
from ...bounded import from_json, read_text
from ...data.images import load_rgb, open_upright, read_bytes, to_rgb
from ...errors import UserError
from ...flavours import BASE, FLAVOURS, Flavour
from ...settings import job
from ...settings.job import Job
from ...settings.training import NO_RECIPE, TrainingSettings
from ..folder import RunFolder
from ..writers.png import PREVIEW

MOST_PICTURES = 8
LONGEST = 300  # characters of a prompt
MOST_REPORT = 1 << 20  # bytes


@dataclass(frozen=True)
class Example:
    """A prompt, and what the base model and the LoRA paint of it with the same noise."""

    prompt: str
    base: Image.Image
    painted: Image.Image


@dataclass(frozen=True)
class Facts:
    """``steps`` is what the run has trained, ``pictures`` how many images; ``settings`` are (name, value) in words."""

    name: str
    flavour: Flavour
    variant: str
    trigger: str
    steps: int
    pictures: int
    format: str
    settings: tuple[tuple[str, str], ...]
    examples: tuple[Example, ...]
    version: str = __version__

    @property
    def base_model(self) -> str:
        """The base model's repository; empty for a flavour that its makers do not publish."""
        return self.flavour.repositories.get(self.variant, "")


def facts_of(folder: RunFolder) -> Facts:
    """Read a run. Raises UserError if its job cannot be read."""
    given, about, report = job.load(folder.job), folder.about(), _report(folder)
    row = FLAVOURS.get(report.get("flavour") or given.model.flavour)
    if row is None:
        raise UserError(f"The run {folder.name} does not say which FLUX.2 it was trained on.")
    trained_on = report.get("base_file") or given.model.transformer
    return Facts(
        folder.name,
        row,
        row.variant_of(Path(trained_on).name) or BASE,
        next((data.trigger for data in given.dataset if data.trigger), ""),
        int(about.get("step") or 0),
        int(report.get("images") or 0),
        given.training.save.format,
        tuple(_settings(given)),
        tuple(_examples(folder)),
    )


def _report(folder: RunFolder) -> dict[str, Any]:
    try:
        values = from_json(read_text(folder.report, MOST_REPORT))
    except ValueError:  # none yet, or a damaged one: a card can do without
        return {}
    return values if isinstance(values, dict) else {}


def _settings(given: Job) -> Iterator[tuple[str, str]]:
    """(name, value) of what somebody needs who wants to train alike."""
    training, data = given.training, next(iter(given.dataset), None)
    yield "kind", _kind(training)
    yield "rank", f"{training.rank}, alpha {training.alpha or training.rank:g}"
    yield "layers", training.targets
    yield "learning rate", f"{training.learning_rate:g}, {training.optimizer.optimizer}"
    yield "batch", f"{training.batch * training.accumulate}"
    if data:
        yield "resolution", f"{data.resolution} pixels"
    if training.preservation:
        yield "preservation", f"{training.preservation:g}"
    if training.recipe != NO_RECIPE:
        yield "recipe", training.recipe


def _kind(training: TrainingSettings) -> str:
    words = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr"}.get(training.adapter.kind, training.adapter.kind)
    return f"{words} with DoRA" if training.adapter.dora else words


def _examples(folder: RunFolder) -> Iterator[Example]:
    """The newest preview of each prompt that was also painted by the base model, MOST_PICTURES at most."""
    newest: dict[int, tuple[int, Path]] = {}
    for path in folder.previews.glob("step_*.png"):
        match = PREVIEW.fullmatch(path.name)
        if match:
            newest[int(match[2])] = max(newest.get(int(match[2]), (0, path)), (int(match[1]), path))
    pairs = [(folder.previews / f"base_{number}.png", newest[number][1]) for number in sorted(newest)]
    for base, painted in [pair for pair in pairs if pair[0].is_file()][:MOST_PICTURES]:
        picture = open_upright(read_bytes(painted), painted.name)
        yield Example(_prompt(picture), load_rgb(base), to_rgb(picture))


def _prompt(picture: Image.Image) -> str:
    """The prompt in a preview's file; empty if it names none."""
    try:
        request = from_json(str(picture.info.get("flux2_train", "")))
    except ValueError:
        return ""
    prompt = request.get("prompt") if isinstance(request, dict) else ""
    return " ".join(prompt.split())[:LONGEST] if isinstance(prompt, str) else ""
