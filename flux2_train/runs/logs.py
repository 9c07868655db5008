"""Logs for other programs: TensorBoard and Weights & Biases, each through its own writer. loss.csv always exists."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict

from ..errors import UserError
from ..evaluate import sheets
from ..events import Event, ImagesMeasured, Previewed, SelectivityMeasured, Stepped, Validated
from ..settings.training import TrainingSettings
from .folder import RunFolder

# Neither the process's output nor what wandb finds out by itself is sent: user, computer, paths of programs, git.
PRIVATE = {
    "console": "off", "x_disable_meta": True, "x_disable_machine_info": True, "disable_git": True,
    "disable_code": True, "save_code": False,
}  # fmt: skip


def require_installed(names: tuple[str, ...]) -> None:
    """Raise UserError that names the missing package of a log."""
    for name in names:  # the package has the log's name
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"The log {name!r} needs the package {name}, which is not installed: run pip install {name} with "
                "ComfyUI's Python, or turn that log off."
            )


def opened(config: TrainingSettings, folder: RunFolder, step: int = 0) -> list[Log]:
    """The logs that a run's settings ask for. A run that is resumed after ``step`` replaces its later entries."""
    return [open_log(name, config, folder, step) for name in config.log_writers]


def open_log(name: str, config: TrainingSettings, folder: RunFolder, step: int) -> Log:
    """One log; see ``opened``."""
    return {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}[name](config, folder, step)


class Log:
    """Turns events into scalars and pictures by name."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def picture(self, name: str, picture, step: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __call__(self, event: Event) -> None:
        match event:
            case Stepped():
                values = {"loss/raw": event.loss, "loss/smoothed": event.smoothed, "seconds per step": event.seconds}
                preservation = {"loss/preservation": event.preservation} if event.preservation else {}
                self.scalars({**values, **preservation}, event.step)
            case Validated(step, loss, held_out):
                self.scalars({"loss/held out" if held_out else "loss/validation": loss}, step)
            case SelectivityMeasured(step, taught, leaked):
                self.scalars({"change/with trigger": taught, "change/without trigger": leaked}, step)
            case ImagesMeasured(step, images):
                for image in images:
                    error = sum(image.with_caption) / len(image.with_caption)
                    self.scalars({f"images/{image.path.name}": error}, step)
            case Previewed(step, pictures):
                for number, each in enumerate(pictures, 1):
                    self.picture(f"preview {number}: {each.label[:80]}", each.painted, step)


class TensorBoard(Log):
    """Scalars, pictures and the configuration for TensorBoard, in the folder ``tensorboard`` of the run."""

    def __init__(self, config: TrainingSettings, folder: RunFolder, step: int):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.writer = SummaryWriter(str(folder.tensorboard), purge_step=step + 1 if step else None)
        self.writer.add_text("configuration", f"```\n{json.dumps(asdict(config.public), indent=2)}\n```")

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, name: str, picture, step: int) -> None:
        self.writer.add_image(name, picture.clamp(0, 1), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


def _private(wandb) -> dict:
    """Those of PRIVATE that the installed version has."""
    return {name: value for name, value in PRIVATE.items() if name in getattr(wandb.Settings, "model_fields", PRIVATE)}


class WeightsAndBiases(Log):
    """The same for Weights & Biases, in its project ``flux2_train``. Its own environment variables say where it lies.

    A resumed run is a second run there, in the same group. The process's output is not sent. Raises UserError if it
    cannot begin, for example without a key.
    """

    def __init__(self, config: TrainingSettings, folder: RunFolder, step: int):
        import wandb

        self.wandb = wandb
        try:
            self.run = wandb.init(
                project="flux2_train", name=folder.name, group=folder.name, dir=str(folder.path),
                config=asdict(config.public), settings=wandb.Settings(**_private(wandb)),
            )  # fmt: skip
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases cannot begin ({error}): run wandb login in a terminal, set WANDB_MODE=offline, or "
                "turn that log off."
            ) from error

    def scalars(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def picture(self, name: str, picture, step: int) -> None:
        self.run.log({name: self.wandb.Image(sheets.to_picture(picture))}, step=step)

    def close(self) -> None:
        self.run.finish()
