from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..flux2_train.data import folder as data
from ..flux2_train.errors import UserError
from .progress import NodeProgress
from .types import CATEGORY, FluxDataset

# Not a folder named "examples": ComfyUI would look for workflow templates in it instead of in workflows/.
SHIPPED = Path(__file__).resolve().parents[1] / "datasets"


def resolve(folder: str) -> Path:
    """An absolute folder as it is; a relative one inside ComfyUI's input folder, else of the pack's own data sets."""
    named = Path(folder.strip().strip('"')).expanduser()
    if named.is_absolute():
        return named
    if not named.parts or ".." in named.parts:
        raise UserError(f"{folder!r} is no folder name; give a folder inside ComfyUI's input folder, or a full path.")
    places = [Path(folder_paths.get_input_directory()) / named, SHIPPED / named]
    return next((place for place in places if place.is_dir()), places[0])


class DatasetFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2DatasetFolder",
            display_name="Dataset Folder",
            category=CATEGORY,
            description="A folder of images and captions to train on.",
            search_aliases=["training data", "captions", "load images"],
            inputs=[
                io.String.Input(
                    "folder", default="robot",
                    tooltip="Folder of images: a name inside ComfyUI's input folder, a full path, or 'robot' for "
                    "the example that comes with the pack. 10 to 30 varied images make a good LoRA.",
                ),
                io.Combo.Input(
                    "captions", options=list(data.CAPTION_SOURCES), default=data.TEXT_FILE,
                    tooltip="Where captions come from: a .txt of the same name beside each image (best), the "
                    "image's file name, or one prompt for all.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True,
                    tooltip="The caption of every image with 'one prompt', and of images without a .txt otherwise.",
                ),
                io.Int.Input(
                    "resolution", default=1024, min=64, max=4096, step=16,
                    tooltip="Images are scaled to about this many pixels squared, keeping their shape. 1024 is full "
                    "quality, 512 trains about four times faster, nano needs 128.",
                ),
                io.Int.Input(
                    "repeats", default=1, min=1, max=1000,
                    tooltip="How often each image is seen per epoch. Matters only when you count epochs; 1 is good.",
                ),
                io.String.Input(
                    "trigger", default="",
                    tooltip="The word that calls up what you train, such as 'zbot'. Replaces [trigger] in captions and "
                    "is put in front of captions that lack it. Choose one that means nothing yet.",
                ),
                io.String.Input(
                    "class_word", default="",
                    tooltip="What the subject is in plain words, such as 'robot'. Preservation keeps the model's idea "
                    "of this word as it was. Needed only with preservation.",
                ),
                io.String.Input(
                    "references", default="", optional=True, advanced=True,
                    tooltip="For training edits: a folder with the picture before the edit under each image's name. "
                    "Captions then say what to change. Leave empty otherwise.",
                ),
            ],
            outputs=[FluxDataset.Output(display_name="dataset")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder: str, references: str = "", **_) -> list:
        """Files, sizes and dates: an edited caption or a new image makes the graph run again."""
        try:  # names that come over a wire are not known yet, and are None
            entries = [p for name in (folder, references) if name for p in sorted(resolve(name).iterdir())]
        except (OSError, UserError):
            return []
        return [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in entries if p.is_file()]

    @classmethod
    def execute(
        cls,
        folder: str,
        captions: str,
        prompt: str,
        resolution: int,
        repeats: int,
        trigger: str,
        class_word: str,
        references: str = "",
    ) -> io.NodeOutput:
        found = data.read_folder(
            resolve(folder),
            resolution,
            captions,
            prompt,
            trigger.strip(),
            class_word.strip(),
            repeats,
            resolve(references) if references.strip() else None,
        )
        NodeProgress(cls.hidden.unique_id, 1).say(found.summary())
        return io.NodeOutput(found)
