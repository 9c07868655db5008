from __future__ import annotations

import re
from pathlib import Path

from comfy_api.latest import io

from ...flux2_train.errors import UserError
from ...flux2_train.host.loading import files, places
from ...flux2_train.runs.folder import RunFolder
from ...flux2_train.runs.library.removal import existing
from ...flux2_train.runs.publishing.contents import publish
from ...flux2_train.runs.publishing.hub import push
from ..browser.shown import keep
from ..types import USE

ENDING, STEP = ".safetensors", re.compile(r"_step\d+$")  # of the files that a run saves


class PublishLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2PublishLora",
            display_name="Publish LoRA",
            category=USE,
            description="Writes a folder that is ready for a hub: the LoRA, a model card, pictures before and after. "
            "Uploads it privately where a repository is named. No path or name of this computer is in it.",
            search_aliases=["upload lora", "huggingface", "hugging face", "model card", "share lora", "push to hub"],
            inputs=[
                io.String.Input(
                    "run", tooltip="The run's name, or wire 'saved file' of LoRA Trainer: it then waits for the end.",
                ),
                io.String.Input(
                    "repository", default="", optional=True,
                    tooltip="OWNER/NAME on the hub, such as alice/zbot-lora; made private. Needs the hub's own login "
                    "on this computer (hf auth login). Empty: only the folder is written, in output/flux2_published.",
                ),
            ],
            outputs=[io.String.Output(display_name="folder")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, run: str, repository: str = "") -> io.NodeOutput:
        runs = files.run_folder()
        folder, lora = _run_and_lora(runs, run)
        if repository.strip():
            _require_alone()
        published = publish(folder, files.lora_folder(), files.published_folder() / folder.name, lora)
        text = str(published)
        if repository.strip():
            text += f"\nUploaded: {push(published.folder, repository.strip())}"
        return io.NodeOutput(str(published.folder), ui=keep(cls.hidden.unique_id, text))


def _run_and_lora(runs: Path, named: str) -> tuple[RunFolder, str]:
    """The run of a name or of a file that it has saved, and that file; an empty text means the one it saved last."""
    stem, is_file = named.strip().removesuffix(ENDING), named.strip().endswith(ENDING)
    if not stem:
        raise UserError("No run is named: write its name, or wire 'saved file' of LoRA Trainer.")
    run = STEP.sub("", stem) if is_file and not (runs / stem).is_dir() else stem
    return existing(runs, run), named.strip() if is_file else ""


def _require_alone() -> None:
    """The hub's login belongs to the person at this computer, not to everybody who can reach the server."""
    if not places.listens_here_alone():
        raise UserError(
            "Other computers can reach this ComfyUI, and the hub's login belongs to the person at this one: leave "
            "'repository' empty, and upload from a terminal: python -m flux2_train publish RUN --push OWNER/NAME."
        )
