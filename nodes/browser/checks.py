"""What is wrong with a graph before it runs: a node's own values, and what needs two nodes.

Each check yields the name of an input and a sentence. Values that come over a wire are not known yet and not looked at;
``execute`` looks at everything again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ...flux2_train.data.pairs import listing
from ...flux2_train.errors import UserError
from ...flux2_train.evaluate.compare import matching
from ...flux2_train.host.loading.files import resolve, resolve_file
from ...flux2_train.names import problem, shown
from ...flux2_train.runs.files_there import parts
from ...flux2_train.settings import base
from ...flux2_train.settings.dataset_folder import DatasetSettings
from ...flux2_train.settings.model import ModelSettings
from ...flux2_train.settings.text import numbers
from ...flux2_train.settings.training import TrainingSettings

NO_FILE = "none"
Problem = tuple[str, str]  # the input's name, and a sentence


@dataclass(frozen=True)
class Node:
    """One node of a prompt, and the prompt around it."""

    id: str
    kind: str
    inputs: dict
    prompt: dict

    def value(self, name: str, default: object = None) -> object:
        """The value of a widget, ``default`` if it is wired or missing."""
        value = self.inputs.get(name, default)
        return default if isinstance(value, list) else value

    def text(self, name: str) -> str | None:
        """A widget's text, ``None`` if it is wired or missing."""
        value = self.value(name)
        return value if isinstance(value, str) else None

    def wired(self, name: str) -> Node | None:
        """The node that is wired into an input."""
        return _node(self.prompt, self.inputs.get(name))

    def all_wired(self) -> Iterator[Node]:
        """Every node that is wired into this one."""
        return filter(None, (self.wired(name) for name in self.inputs))


def _node(prompt: dict, link: object) -> Node | None:
    if not isinstance(link, list) or len(link) != 2 or not isinstance(prompt.get(str(link[0])), dict):
        return None
    return node_of(prompt, str(link[0]))


def node_of(prompt: dict, id: str) -> Node:
    """The node of that id."""
    return Node(id, str(prompt[id].get("class_type", "")), prompt[id].get("inputs") or {}, prompt)


def problems(prompt: dict, outputs: Iterable[str]) -> dict[str, list[Problem]]:
    """What is wrong, by node, with everything that would run: the nodes ``outputs`` and what they need."""
    found = {}
    for node in _needed(prompt, outputs):
        wrong = list(CHECKS[node.kind](node)) if node.kind in CHECKS else []
        if wrong:
            found[node.id] = wrong
    return found


def _needed(prompt: dict, outputs: Iterable[str]) -> Iterator[Node]:
    waiting = list(outputs)
    seen = set(waiting)
    while waiting:
        node = node_of(prompt, waiting.pop())
        yield node
        for other in node.all_wired():
            if other.id not in seen:
                seen.add(other.id)
                waiting.append(other.id)


def _folder(node: Node) -> Iterator[Problem]:
    yield from _each(node, DatasetSettings, "resolution", "repeats", folder=Path("x"))
    folder = node.text("folder")
    if folder is not None and (wrong := wrong_folder(folder, bool(node.value("subfolders", True)))):
        yield "folder", wrong
    for name in filter(str.strip, (node.text("references") or "").split(";")):
        if wrong := wrong_folder(name, True):
            yield "references", wrong


def wrong_folder(name: str, subfolders: bool) -> str:
    """Why a folder cannot be trained on, as far as can be seen without opening an image; else empty."""
    if not name.strip():
        return "No folder is named: write the name of a folder in ComfyUI's input folder, or a full path."
    try:
        path = resolve(name)
    except UserError as error:
        return str(error)
    if path.is_file() and path.suffix == ".jsonl":
        return ""
    if not path.is_dir():
        return _no_folder(name, path)
    try:
        images, _ = listing(path, subfolders)
    except OSError as error:
        return f"The folder {path} cannot be read ({error.strerror})."
    if images or any(path.glob("*.jsonl")):
        return ""
    return (
        f"The folder {path} holds no image: put .png, .jpg or .webp files into it, each with a .txt of the same name."
    )


def _no_folder(name: str, path: Path) -> str:
    windows = len(name.strip()) > 1 and (name.strip()[1] == ":" or "\\" in name)
    if windows and os.name != "nt":
        return f"{name!r} is a folder of a Windows computer; ComfyUI runs on another: name a folder that it can read."
    own = folder_paths.get_input_directory()
    return f"There is no folder {path}. Name a folder inside {own}, or the full path of one on ComfyUI's own computer."


def _trainer(node: Node) -> Iterator[Problem]:
    yield from _each(node, TrainingSettings, "name", "steps", "rank", "learning_rate", "alpha", "epochs", "batch",
                     "accumulate", "preservation", "differential_guidance")  # fmt: skip
    if node.value("steps") == 0 and node.value("epochs") == 0:
        yield "steps", "steps and epochs are both 0: nothing would be trained. Set one of them."
    yield from _preservation(node)
    embeds, previews = node.wired("embeds"), node.inputs.get("validation")
    wired = [each for each in node.all_wired() if each.kind == "Flux2Validation"]
    if wired and embeds and embeds.kind == "Flux2CacheEmbeds" and not _has(embeds, wired[0].id):
        sentence = (
            "Validation is wired into LoRA Trainer but not into Cache Embeds, which encodes its prompts: wire both."
        )
        yield "embeds" if previews is None else "validation", sentence


def _has(node: Node, id: str) -> bool:
    return any(other.id == id for other in node.all_wired())


def _preservation(node: Node) -> Iterator[Problem]:
    """Keeping what the class word means needs a trigger and a class word on every data set."""
    strength = node.value("preservation", 0.0)
    options = next((each for each in node.all_wired() if each.kind == "Flux2Preservation"), None)
    if not isinstance(strength, int | float) or strength <= 0 or (options and options.value("kind") != "class"):
        return
    latents = node.wired("latents")
    for data in _folders(latents.wired("dataset") if latents else None):
        for name, what in (("trigger", "trigger word"), ("class_word", "class word")):
            if data.text(name) is not None and not data.text(name).strip():
                place = f"Dataset Folder (node {data.id}) has no {what}"
                sentence = f"preservation is on, but {place}: fill in '{name}' there, or set preservation to 0."
                yield "preservation", sentence
                return


def _folders(node: Node | None) -> Iterator[Node]:
    seen = set()
    while node is not None and node.kind == "Flux2DatasetFolder" and node.id not in seen:
        seen.add(node.id)
        yield node
        node = node.wired("more")


def _files(node: Node) -> Iterator[Problem]:
    values = {name: node.text(name) for name in ("flavour", "variant", "transformer", "text_encoder", "vae")}
    try:
        settings = ModelSettings(**{name: value for name, value in values.items() if value is not None})
        found = parts(settings)
    except UserError as error:
        yield "variant", str(error)
        return
    for part in found:
        if part.line.startswith("bad: "):
            sentence = part.line.removeprefix("bad: ")
            yield part.widget, sentence[:1].upper() + sentence[1:]


def _apply(node: Node) -> Iterator[Problem]:
    if "lora" not in node.inputs and node.value("file", NO_FILE) == NO_FILE and "file" in node.inputs:
        yield "file", "LoRA Apply has no LoRA: wire LoRA Trainer into 'lora', or choose a file."


def _compare(node: Node) -> Iterator[Problem]:
    try:
        chosen = matching(node.text("files") or "", folder_paths.get_filename_list("loras"))
    except UserError as error:
        yield "files", str(error)
        return
    if not chosen and "lora" not in node.inputs and node.text("run") == "" and node.text("files") is not None:
        yield "files", "Compare LoRAs has no LoRA: wire one into 'lora', write file names, or name a run."
    try:
        numbers(node.text("strengths") or "1", "strengths")
    except UserError as error:
        yield "strengths", str(error)


def _validation(node: Node) -> Iterator[Problem]:
    name = (node.text("prompt_file") or "").strip()
    if not name:
        return
    try:
        path = resolve_file(name)
    except UserError as error:
        yield "prompt_file", str(error)
        return
    if not path.is_file():
        yield "prompt_file", f"There is no file {path}: name a .txt or .json file in ComfyUI's input folder."


def _merged(node: Node) -> Iterator[Problem]:
    if node.value("file") == NO_FILE:
        yield "file", "Save Merged Model has no LoRA: choose a file."
    name = node.text("name")
    if name is not None and (wrong := problem(name)):
        yield "name", f"The name {shown(name)!r} cannot be a file name: {wrong}."


def _each(node: Node, kind: type, *names: str, **required: object) -> Iterator[Problem]:
    """What the settings say about each of these values alone."""
    for name in names:
        value, number = node.value(name), base.info(kind, name).annotation
        if value is None:
            continue
        try:
            kind(**required, **{name: number(value) if number in (int, float) else value})
        except UserError as error:
            if name != "steps" or value:  # steps 0 counts epochs
                yield name, str(error)
        except (TypeError, ValueError):  # ComfyUI says so itself
            continue


CHECKS: dict[str, Callable[[Node], Iterator[Problem]]] = {
    "Flux2DatasetFolder": _folder, "Flux2LoraTrainer": _trainer, "Flux2Load": _files, "Flux2LoraApply": _apply,
    "Flux2CompareLoras": _compare, "Flux2Validation": _validation, "Flux2SaveMergedModel": _merged,
}  # fmt: skip
