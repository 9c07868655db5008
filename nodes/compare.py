from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..flux2_train.adapters import read
from ..flux2_train.data.images import to_tensor
from ..flux2_train.errors import UserError
from ..flux2_train.evaluate.compare import compared, labelled, matching, require_few
from ..flux2_train.host.graph_types import CLIP, VAE, ModelPatcher
from ..flux2_train.host.loading.files import run_folder
from ..flux2_train.host.lora import apply as host
from ..flux2_train.host.sampling.sample import PaintSettings
from ..flux2_train.runs.checkpoint_lora import lora_of
from ..flux2_train.runs.checkpoints import paths, step_of
from ..flux2_train.runs.folder import RunFolder
from ..flux2_train.settings.text import numbers
from . import painting
from .progress import NodeProgress
from .types import USE

WIRED = "the LoRA wired in"


class CompareLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CompareLoras",
            display_name="Compare LoRAs",
            category=USE,
            description="Paints one prompt from one seed with several LoRAs at several strengths, in one labelled "
            "picture, and gives the chosen LoRA on.",
            search_aliases=["xy plot", "grid", "checkpoints", "strengths"],
            inputs=[
                io.Model.Input("model", tooltip="The model that paints; LoRAs are put on clones of it."),
                io.Clip.Input("clip", tooltip="The text encoder of the same flavour."),
                io.Vae.Input("vae", tooltip="Turns latents into pictures: VAE of Load FLUX.2."),
                io.LoraModel.Input("lora", optional=True, tooltip="From LoRA Trainer, shown first. Leave free for "
                                   "files alone."),
                io.String.Input(
                    "files", multiline=True, default="",
                    tooltip="LoRA files of ComfyUI's loras folder, one per line: names, or patterns such as zbot* for "
                    "everything that a run has saved.",
                ),
                io.String.Input(
                    "run", default="", optional=True, advanced=True,
                    tooltip="Also the checkpoints of this run: its name in output/flux2_train, such as flux2_lora_2.",
                ),
                io.String.Input(
                    "strengths", default="1",
                    tooltip="How strongly each LoRA acts: numbers with commas between them, such as 0.5, 0.8, 1.",
                ),
                painting.prompt(),
                *painting.inputs("width", "height"),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                    tooltip="The starting noise, the same for every picture.",
                ),
                io.Int.Input(
                    "index", default=0, min=0, max=1000, advanced=True,
                    tooltip="Which LoRA is given on: 0 is the first row below the base model's picture.",
                ),
                *painting.inputs("negative", "steps", "guidance", "sampler"),
                io.Combo.Input(
                    "mode", options=list(host.MODES), default=host.AUTO, optional=True, advanced=True,
                    tooltip="How LoRAs are put on: merged into the weights or computed beside them, as in LoRA Apply.",
                ),
                io.Int.Input(
                    "picture_size", default=512, min=0, max=8192, step=16, optional=True, advanced=True,
                    tooltip="Longest side of each picture in the grid; larger ones are shrunk to it. 0 keeps them.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid"),
                io.LoraModel.Output(display_name="lora"),
                io.String.Output(display_name="name"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # it shows its grid itself
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, files: str = "", run: str = "", **_) -> object:
        try:  # a text that comes over a wire is still None here
            paths = [Path(_path(name)) for name in matching(files or "", _names())] + _checkpoints(run or "")
        except UserError:  # execute says what is wrong
            return files, run
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]

    @classmethod
    def execute(
        cls, model: ModelPatcher, clip: CLIP, vae: VAE, files: str, strengths: str, prompt: str, index: int,
        lora: dict | None = None, run: str = "", negative: str = "", mode: str = host.AUTO, picture_size: int = 512,
        **settings,
    ) -> io.NodeOutput:  # fmt: skip
        names, levels = matching(files, _names()), numbers(strengths, "strengths")
        loras, steps = {WIRED: lora} if lora is not None else {}, _checkpoints(run)
        require_few(len(loras) + len(steps) + len(names), levels)
        loras |= {f"{run.strip()} after step {step_of(path)}": lora_of(model, path) for path in steps}
        loras |= {name: read.load(Path(_path(name))) for name in names}
        if index >= len(loras):
            raise UserError(f"index is {index} but the LoRAs here are {len(loras)}, counted from 0.")
        progress = NodeProgress(cls.hidden.unique_id, 1)
        rows = compared(model, clip, vae, loras, levels, prompt, negative, PaintSettings(**settings), mode,
                        progress.counting("pictures"))  # fmt: skip
        chosen = list(loras)[index]
        grid = to_tensor(labelled(rows, list(loras), levels, picture_size))
        return io.NodeOutput(grid, loras[chosen], chosen, ui=ui.PreviewImage(grid, cls=cls))


def _checkpoints(run: str) -> list[Path]:
    """The checkpoints of a run by its name, the newest last. Raises UserError if there are none."""
    name = run.strip()
    if not name:
        return []
    folder = RunFolder(run_folder() / name)
    checkpoints = paths(folder.checkpoints) if Path(name).name == name != ".." else []
    if not checkpoints:
        raise UserError(f"There is no run {name!r} with checkpoints in {run_folder()}; name a run's folder there.")
    return checkpoints


def _names() -> list[str]:
    return folder_paths.get_filename_list("loras")


def _path(name: str) -> str:
    return folder_paths.get_full_path_or_raise("loras", name)
