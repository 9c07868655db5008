from __future__ import annotations

from comfy_api.latest import io

from ...flux2_train.adapters import files as lora_files
from ...flux2_train.errors import UserError
from ...flux2_train.host.loading import files
from ...flux2_train.runs.checkpoint_lora import write_lora
from ...flux2_train.runs.checkpoints import paths, step_of
from ...flux2_train.runs.library.removal import existing
from ...flux2_train.runs.precision import parts_of
from ...flux2_train.settings import job
from ..browser.shown import keep
from ..types import TRAIN


class CheckpointLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CheckpointLora",
            display_name="LoRA of a Checkpoint",
            category=TRAIN,
            description="Writes the LoRA that a run would have saved at one of its checkpoints. The tab FLUX.2 runs "
            "queues this node.",
            inputs=[
                io.String.Input("run", tooltip="The run's name: that of its folder in output/flux2_train."),
                io.Int.Input(
                    "step", default=1, min=1, max=1 << 30,
                    tooltip="The step of a checkpoint that the run has kept; which ones there are, the tab shows.",
                ),
            ],
            outputs=[io.String.Output(display_name="saved file")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            is_dev_only=True,  # the tab queues it; in a graph LoRA Apply takes the file
        )  # fmt: skip

    @classmethod
    def execute(cls, run: str, step: int) -> io.NodeOutput:
        folder = existing(files.run_folder(), run)
        there = {step_of(path): path for path in paths(folder.checkpoints)}
        if step not in there:
            raise UserError(
                f"The run {run} has no checkpoint {step}; there are {', '.join(map(str, there)) or 'none'}."
            )
        given = job.load(folder.job)
        save = given.training.save
        output = lora_files.free_path(files.lora_folder(), f"{folder.name}_step{step}", save.format)
        text = write_lora(parts_of(given.model).load_model(), there[step], output, save)
        return io.NodeOutput(output.name, ui=keep(cls.hidden.unique_id, text))
