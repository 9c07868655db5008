"""A LoRA file's tensors together with its header, which says how to use them, as they pass through a graph."""

from __future__ import annotations

from safetensors import safe_open
from torch import Tensor

from ..bounded import from_json
from ..names import shown

REFERENCES = "flux2_train.references"  # how reference images were shown in training
TRIGGER = "modelspec.trigger_phrase"  # https://github.com/Stability-AI/ModelSpec
TAGS = "ss_tag_frequency"  # of kohya; AI Toolkit writes {"1_TRIGGER": {"1_TRIGGER": 1}} into it
MOST_JSON = 1 << 16  # characters; kohya lists every tag of every picture there


class Tensors(dict):
    """A LoRA's tensors by key, as ComfyUI's LORA_MODEL, and the header of their file."""

    def __init__(self, tensors: dict[str, Tensor], header: dict[str, str]):
        super().__init__(tensors)
        self.header = header


def opened_lora(file: safe_open) -> Tensors:
    """All tensors of an open safetensors file, with its header."""
    return Tensors({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118


def references_of(tensors: dict[str, Tensor]) -> str:
    """How reference images were shown to this LoRA in training; ``index``, ComfyUI's way, if the header has nothing."""
    return getattr(tensors, "header", {}).get(REFERENCES, "index")


def trigger_words(tensors: dict[str, Tensor]) -> str:
    """The words that call up what a LoRA has learned, as its header names them in one line; empty if it names none."""
    header = getattr(tensors, "header", {})
    phrase = header.get(TRIGGER) or _of_ai_toolkit(header.get(TAGS) or "")
    return shown(" ".join(phrase.split())) if isinstance(phrase, str) else ""


def _of_ai_toolkit(text: str) -> str:
    try:
        tags = from_json(text) if len(text) <= MOST_JSON else {}
    except ValueError:
        return ""
    names = list(tags) if isinstance(tags, dict) else []
    alone = len(names) == 1 and tags[names[0]] == {names[0]: 1}  # kohya's own files count the tags of a folder
    return names[0].removeprefix("1_") if alone and names[0].startswith("1_") else ""
