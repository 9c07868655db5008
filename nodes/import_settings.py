from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..flux2_train.errors import UserError
from ..flux2_train.flavours import FLAVOURS
from ..flux2_train.host.loading import files
from ..flux2_train.importers.importing import import_file, write_job
from ..flux2_train.names import problem, shown
from .browser.shown import keep
from .types import USE

OF_THE_FILE = "as in the file"


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
        return io.NodeOutput(imported.text, str(written), ui=shown_text)


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
