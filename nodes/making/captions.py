"""Captions made in the graph: the pictures of a folder for any node that describes them, and what is written of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from comfy_api.latest import io

from ...flux2_train.data.curate import edits
from ...flux2_train.data.curate.captioning import ALL, MISSING, Target, filled, targets
from ...flux2_train.data.images import digest_of, open_upright, read_bytes, to_rgb, to_tensor
from ...flux2_train.errors import UserError
from ...flux2_train.host.encoding.describing import describe, require_sight
from ...flux2_train.host.graph_types import CLIP
from ...flux2_train.host.loading import places
from ...flux2_train.host.loading.files import resolve
from ...flux2_train.names import counted, shown
from ...flux2_train.settings.dataset_folder import DatasetSettings
from ..browser.shown import keep
from ..dataset_folder import folder_states
from ..progress import NodeProgress
from ..types import TRAIN

PREVIEW, WRITE = "preview only", "write"
PROMPT = "Describe this picture in one sentence: what it shows, what is around it, how it is lit. No introduction."
LISTED = 40  # captions that the node shows
SIDE = 1024  # pixels: larger pictures are scaled down before a model sees them


def _inputs() -> list:
    return [
        io.String.Input(
            "folder", default="",
            tooltip="Folder of pictures: a name inside ComfyUI's input folder, or a full path, as in Dataset Folder.",
        ),
        io.Combo.Input(
            "which", options=[MISSING, ALL], default=MISSING,
            tooltip="Only pictures without a caption, or every picture: captions that are there are then replaced.",
        ),
        io.Boolean.Input(
            "subfolders", default=True, optional=True, advanced=True,
            tooltip="Also take pictures from folders inside the folder.",
        ),
    ]  # fmt: skip


def _targets(folder: str, which: str, subfolders: bool) -> tuple[Path, list[Target]]:
    if not folder.strip():
        raise UserError("No folder is named: write the name of a folder in ComfyUI's input folder, or a full path.")
    root = resolve(folder)
    return root, targets(DatasetSettings(root, subfolders=subfolders), which, places.may_read)


def _seen(path: Path) -> tuple:
    """(image (1, H, W, 3), content hash) of a picture, scaled down to at most SIDE pixels."""
    data = read_bytes(path)
    picture = to_rgb(open_upright(data, path.name))
    picture.thumbnail((SIDE, SIDE))
    return to_tensor(picture), digest_of(data)


class FolderImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2FolderImages",
            display_name="Folder Images",
            category=TRAIN,
            description="The pictures of a folder one by one, in the order in which Caption Images takes captions: for "
            "any node that describes a picture.",
            search_aliases=["load images from folder", "image list"],
            inputs=_inputs(),
            outputs=[io.Image.Output(display_name="images", is_output_list=True)],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", **_) -> list:
        return folder_states(folder)

    @classmethod
    def execute(cls, folder: str, which: str, subfolders: bool = True) -> io.NodeOutput:
        root, found = _targets(folder, which, subfolders)
        if not found:
            raise UserError(f"Every picture in {root} has a caption: set 'which' to '{ALL}' to write new ones.")
        return io.NodeOutput([_seen(target.path)[0] for target in found])


class CaptionImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CaptionImages",
            display_name="Caption Images",
            category=TRAIN,
            description="Writes captions beside the pictures of a folder: texts of any node, one for each picture of "
            "Folder Images, or what a text encoder that sees pictures says of them. Shows them before it writes.",
            search_aliases=["auto caption", "captioning", "tagger", "describe", "florence", "joycaption"],
            is_input_list=True,
            inputs=[
                *_inputs(),
                io.String.Input(
                    "template", default="[trigger] ...",
                    tooltip="What is written: ... is the caption, [trigger] the trigger word of Dataset Folder.",
                ),
                io.Combo.Input(
                    "write", options=[PREVIEW, WRITE], default=PREVIEW,
                    tooltip="Look at the captions first; then choose 'write' and queue again to write them.",
                ),
                io.String.Input(
                    "captions", optional=True, force_input=True,
                    tooltip="Texts of another node, one for each picture of Folder Images with the same folder.",
                ),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="Without captions: a text encoder that sees pictures, such as Qwen3-VL by Load CLIP.",
                ),
                io.String.Input(
                    "prompt", default=PROMPT, multiline=True, optional=True, advanced=True,
                    tooltip="What the text encoder is asked about each picture.",
                ),
                io.Int.Input(
                    "max_length", default=128, min=1, max=2048, optional=True, advanced=True,
                    tooltip="The most tokens that the text encoder writes about one picture.",
                ),
            ],
            outputs=[io.String.Output(display_name="captions", is_output_list=True)],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder: list[str] | str = "", **_) -> list:
        return folder_states(folder[0] if isinstance(folder, list) else folder)

    @classmethod
    def execute(
        cls, folder: list[str], which: list[str], template: list[str], write: list[str],
        subfolders: list[bool] = (True,), captions: list[str] | None = None, clip: list[CLIP] | None = None,
        prompt: list[str] = (PROMPT,), max_length: list[int] = (128,),
    ) -> io.NodeOutput:  # fmt: skip
        root, found = _targets(folder[0], which[0], subfolders[0])
        filled(template[0], "")  # a wrong template is said before a model works
        if write[0] == WRITE and not places.may_write(root):
            raise UserError("The example that comes with the pack stays as it is: copy its folder.")
        progress = NodeProgress(cls.hidden.unique_id, 1)
        if captions is None:
            texts = list(_described(found, clip, prompt[0], max_length[0], progress))
        else:
            texts = _given(captions, found)
        written = [filled(template[0], text) for text in texts]
        lines = list(_lines(found, written, write[0] == WRITE))
        return io.NodeOutput(written, ui=keep(cls.hidden.unique_id, "\n".join(lines)))


def _given(captions: Sequence[str], found: list[Target]) -> list[str]:
    if len(captions) == 1 and len(found) != 1:  # one text, with a line for each picture
        captions = [line for line in captions[0].splitlines() if line.strip()]
    if len(captions) != len(found):
        raise UserError(
            f"Caption Images got {counted(len(captions), 'caption')} for {counted(len(found), 'picture')}: make them "
            "from Folder Images with the same folder and the same 'which'."
        )
    return list(captions)


def _described(
    found: list[Target], clip: list[CLIP] | None, prompt: str, most: int, progress: NodeProgress
) -> Iterator[str]:
    if not clip:
        raise UserError("Caption Images has neither 'captions' nor 'clip': wire texts, or a text encoder that sees.")
    require_sight(clip[0])
    for done, target in enumerate(found):
        progress.phase("describing pictures", done, len(found))
        yield describe(clip[0], *_seen(target.path), prompt, most)


def _lines(found: list[Target], captions: list[str], write: bool) -> Iterator[str]:
    """What is shown; writes first if ``write``. A caption that somebody else has changed meanwhile stays."""
    wrong = list(_write(found, captions)) if write else []
    count = len(found) - len(wrong)
    yield from (f"warning: {sentence}" for sentence in wrong[:LISTED])
    if not found:
        yield "every picture has a caption: nothing to write"
    elif write:
        yield f"good: {counted(count, 'caption')} written"
    else:
        yield f"{counted(count, 'caption')} to write; nothing is written yet: set 'write' to '{WRITE}' and queue again"
    for target, caption in list(zip(found, captions, strict=True))[:LISTED]:
        yield f"{shown(target.path.name)}: {shown(caption, 300)}"
    if len(found) > LISTED:
        yield f"... and {len(found) - LISTED} more"


def _write(found: list[Target], captions: list[str]) -> Iterator[str]:
    for target, caption in zip(found, captions, strict=True):
        try:
            edits.write_caption(target.path, caption, target.etag)
        except UserError as error:
            yield str(error)
