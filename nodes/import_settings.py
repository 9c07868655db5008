from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..flux2_train.errors import UserError
from ..flux2_train.flavours import FLAVOURS
from ..flux2_train.host.loading import files
from ..flux2_train.importers.importing import import_file, write_job
from ..flux2_train.names import problem, shown
from ..flux2_train.settings import base
from ..flux2_train.settings.base import Settings
from ..flux2_train.settings.job import Job
from ..flux2_train.settings.previews import PreviewSettings
from . import fields
from .browser.shown import keep
from .types import USE

OF_THE_FILE = "as in the file"
IN_GRAPH = "flux2_settings"  # the name under which the browser gets the widgets


class ImportSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2ImportSettings",
            display_name="Import Settings",
            category=USE,
            description="Turns the configuration of SimpleTuner, AI Toolkit, musubi-tuner, OneTrainer, diffusers or "
            "kohya into a job file of this pack, and says what became of every key.",
            search_aliases=["ai-toolkit", "simpletuner", "musubi", "onetrainer", "kohya", "config", "yaml", "toml"],
            inputs=[
                io.String.Input(
                    "file", default="",
                    tooltip="The other trainer's configuration: JSON, YAML, TOML, or a text with its command. A name "
                    "inside ComfyUI's input folder, or a full path.",
                ),
                io.String.Input(
                    "dataset", default="", optional=True,
                    tooltip="The data set file that goes with it, or a folder of images in place of all that the file "
                    "names. Empty looks beside the file.",
                ),
                io.Combo.Input(
                    "flavour", options=[OF_THE_FILE, *FLAVOURS], default=OF_THE_FILE, optional=True,
                    tooltip="Which FLUX.2 to train, if the file does not say it or is for another model.",
                ),
                io.String.Input(
                    "name", default="", optional=True,
                    tooltip="Name of the job file in output/flux2_train/imported; empty takes that of the "
                    "configuration. A number is added if it is taken; nothing is overwritten.",
                ),
            ],
            outputs=[io.String.Output(display_name="report"), io.String.Output(display_name="job file")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **widgets) -> float:
        return float("nan")  # the files may have changed

    @classmethod
    def execute(
        cls, file: str, dataset: str = "", flavour: str = OF_THE_FILE, name: str = ""
    ) -> io.NodeOutput:  # fmt: skip
        path = files.resolve_file(file)
        imported = import_file(path, _data(dataset), "" if flavour == OF_THE_FILE else flavour)
        shown_text = keep(cls.hidden.unique_id, imported.text)
        if imported.job is None:
            raise UserError(f"{path.name} cannot become a job: {' '.join(imported.blockers)}")
        written = write_job(imported.job, _free(name.strip() or path.stem))
        return io.NodeOutput(imported.text, str(written), ui={**shown_text, IN_GRAPH: [in_graph(imported.job)]})


def in_graph(made: Job) -> dict[str, list[dict[str, Any]]]:
    """The widgets of each kind of node for a job, which web/import_settings.js fills in when its button is pressed.

    A kind has one entry, those of data one for each data set. A kind whose settings are all defaults is left out.
    """
    training = made.training
    kinds: dict[str, list[tuple]] = {
        "Flux2Load": [(made.model,)], "Flux2LoraTrainer": [(training,)], "Flux2AdapterOptions": [(training.adapter,)],
        "Flux2Timesteps": [(training.timesteps,)], "Flux2Optimizer": [(training.optimizer, training.ema)],
        "Flux2TrainingObjective": [(training.loss, training.guidance, training.guard)],
        "Flux2Preservation": [(training.preservation_options,)], "Flux2TokenRouting": [(training.routing,)],
        "Flux2ScheduledSampling": [(training.rollout,)], "Flux2Slider": [(training.slider,)],
        "Flux2SaveOptions": [(training.save,)],
        "Flux2ValidationLoss": [(training.validation_loss,)], "Flux2Checkpoints": [(training.checkpoints,)],
        "Flux2Memory": [(training.memory,)], "Flux2CacheEmbeds": [(made.embeds,)],
        "Flux2CacheLatents": [(made.latents,)],
        "Flux2DatasetFolder": [(each,) for each in made.dataset],
        "Flux2CaptionOptions": [(each.caption_options,) for each in made.dataset],
        "Flux2CropOptions": [(each.crop_options,) for each in made.dataset],
        "Flux2MaskOptions": [(each.mask_options,) for each in made.dataset],
        "Flux2ReferenceOptions": [(each.reference_options,) for each in made.dataset],
        "Flux2Validation": [(made.previews,)] if made.previews else [],
    }  # fmt: skip
    widgets = {kind: [_widgets(*sections) for sections in entries] for kind, entries in kinds.items()}
    return {kind: entries for kind, entries in widgets.items() if any(entries)}


def _widgets(*sections: Settings) -> dict[str, Any]:
    """The widgets of one node, empty if all of them are at their defaults."""
    values: dict[str, Any] = {}
    for section in sections:
        values |= _lines(section) if isinstance(section, PreviewSettings) else fields.as_widgets(section)
    defaults = [fields.as_widget(base.info(type(s), name).default) for s in sections for name in base.names(type(s))]
    return {} if list(values.values()) == defaults else values


def _lines(previews: PreviewSettings) -> dict[str, Any]:
    """The widgets of Validation, whose prompts are lines of text."""
    shown = {
        name: fields.as_widget(getattr(previews, name)) for name in base.names(PreviewSettings) if name != "prompts"
    }
    return {"prompts": "\n".join(prompt.line for prompt in previews.prompts), **shown}


def _data(dataset: str) -> Path | None:
    """The data set file, or the folder; None for an empty text."""
    if not dataset.strip():
        return None
    file = files.resolve_file(dataset)
    return file if file.is_file() else files.resolve(dataset)


def _free(name: str) -> Path:
    """A path in the folder of imported jobs that is not taken."""
    wrong = problem(name)
    if wrong:
        raise UserError(f"The name {shown(name)!r} cannot be a file name: {wrong}.")
    folder, number = files.run_folder() / "imported", 1
    path = folder / f"{name}.json"
    while path.exists():
        number += 1
        path = folder / f"{name}_{number}.json"
    return path
