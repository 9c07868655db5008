"""Twenty mistakes that people make, and what each of them shows. docs/mistakes.md lists the same ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOAD, DATA, EMBEDS, LATENTS, TRAINER = "1", "2", "3", "4", "5"
GRAPH = {
    LOAD: {"class_type": "Flux2Load", "inputs": {
        "flavour": "nano", "precision": "as in file", "variant": "auto", "transformer": "auto", "text_encoder": "auto",
        "vae": "auto"}},
    DATA: {"class_type": "Flux2DatasetFolder", "inputs": {
        "folder": "robot", "resolution": 64, "repeats": 1, "captions": "text file", "prompt": "",
        "trigger": "zbot", "class_word": "toy", "references": "", "max_samples": 3}},
    EMBEDS: {"class_type": "Flux2CacheEmbeds", "inputs": {"clip": [LOAD, 1], "dataset": [DATA, 0]}},
    LATENTS: {"class_type": "Flux2CacheLatents", "inputs": {"vae": [LOAD, 2], "dataset": [DATA, 0]}},
    TRAINER: {"class_type": "Flux2LoraTrainer", "inputs": {
        "model": [LOAD, 0], "embeds": [EMBEDS, 0], "latents": [LATENTS, 0], "name": "mistaken", "steps": 2, "rank": 2,
        "learning_rate": 1e-3, "targets": "all", "seed": 3, "preservation": 0.0, "epochs": 10, "validation_items": 0}},
}  # fmt: skip
VALIDATION = {"class_type": "Flux2Validation", "inputs": {"vae": [LOAD, 2], "prompts": "zbot"}}
SAMPLER = {
    "class_type": "Flux2Sampler",
    "inputs": {
        "model": ["6", 0],
        "clip": [LOAD, 1],
        "vae": [LOAD, 2],
        "prompt": "zbot",
        "steps": 1,
        "guidance": 1.0,
        "sampler": "euler",
        "width": 64,
        "height": 64,
        "seed": 1,
    },
}
SHOWN = {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}}


@dataclass(frozen=True)
class Mistake:
    """``change`` makes it in a copy of GRAPH; ``says`` is shown at ``input`` of ``node``, or while the graph runs."""

    name: str
    change: Callable[[dict], object]
    node: str
    input: str
    says: str

    def graph(self) -> dict:
        """The graph with the mistake in it."""
        graph = copy.deepcopy(GRAPH)
        self.change(graph)
        return graph


def _set(node: str, **inputs) -> Callable[[dict], object]:
    return lambda graph: graph[node]["inputs"].update(inputs)


def _preserving(**inputs) -> Callable[[dict], object]:
    return lambda graph: (graph[TRAINER]["inputs"].update(preservation=1.0), graph[DATA]["inputs"].update(inputs))


def _half_wired(graph: dict) -> None:
    graph["6"] = VALIDATION
    graph[TRAINER]["inputs"]["validation"] = ["6", 0]


def _prompt_file(graph: dict) -> None:
    _half_wired(graph)
    graph["6"] = {**VALIDATION, "inputs": {**VALIDATION["inputs"], "prompt_file": "not there.txt"}}
    graph[EMBEDS]["inputs"]["validation"] = ["6", 0]


def _no_lora(graph: dict) -> None:
    graph["6"] = {"class_type": "Flux2LoraApply", "inputs": {"model": [LOAD, 0], "strength": 1.0, "file": "none"}}
    graph["7"], graph["8"] = SAMPLER, SHOWN


def _compared(graph: dict) -> None:
    inputs = {name: value for name, value in SAMPLER["inputs"].items() if name != "model"}
    graph["7"] = {
        "class_type": "Flux2CompareLoras",
        "inputs": {**inputs, "model": [LOAD, 0], "files": "no such*", "strengths": "1", "index": 0},
    }
    graph["8"] = SHOWN


def _merged(graph: dict) -> None:
    graph["6"] = {
        "class_type": "Flux2SaveMergedModel",
        "inputs": {
            "transformer": "sdxl.safetensors",
            "file": "none",
            "strength": 1.0,
            "name": "new",
            "precision": "source",
        },
    }


MISTAKES = [
    Mistake("no folder is named", _set(DATA, folder=" "), DATA, "folder", "No folder is named"),
    Mistake("a folder that is not there", _set(DATA, folder="gone"), DATA, "folder", "There is no folder"),
    Mistake("a folder of another computer", _set(DATA, folder="C:\\Users\\me\\pictures"), DATA, "folder",
            "is a folder of a Windows computer"),
    Mistake("an empty folder", _set(DATA, folder="empty"), DATA, "folder", "holds no image: put .png"),
    Mistake("a folder of references that is not there", _set(DATA, references="gone"), DATA, "references",
            "There is no folder"),
    Mistake("preservation without a trigger", _preserving(trigger=""), TRAINER, "preservation",
            "has no trigger word: fill in 'trigger'"),
    Mistake("preservation without a class word", _preserving(class_word=" "), TRAINER, "preservation",
            "has no class word: fill in 'class_word'"),
    Mistake("steps and epochs 0", _set(TRAINER, steps=0, epochs=0), TRAINER, "steps",
            "steps and epochs are both 0: nothing would be trained"),
    Mistake("a name with a slash", _set(TRAINER, name="my/lora"), TRAINER, "name", "cannot be a file name"),
    Mistake("no name", _set(TRAINER, name=" "), TRAINER, "name", "cannot be a file name"),
    Mistake("learning rate 0", _set(TRAINER, learning_rate=0.0), TRAINER, "learning_rate",
            "learning_rate is 0: nothing would be learned"),
    Mistake("a flavour that was not downloaded", _set(LOAD, flavour="klein-4b"), LOAD, "transformer",
            "flux-2-klein-base-4b.safetensors is missing. Download https://huggingface.co/"),
    Mistake("an SDXL model", _set(LOAD, transformer="sdxl.safetensors"), LOAD, "transformer",
            "sdxl.safetensors is not a FLUX.2 transformer"),
    Mistake("a text encoder of another flavour", _set(LOAD, text_encoder="other_encoder.safetensors"), LOAD,
            "text_encoder", "other_encoder.safetensors is a text encoder 64 wide; nano needs one"),
    Mistake("the VAE of another model", _set(LOAD, flavour="dev", vae="sdxl_vae.safetensors"), LOAD, "vae",
            "sdxl_vae.safetensors is no FLUX.2 VAE"),
    Mistake("Validation wired into the trainer alone", _half_wired, TRAINER, "validation", "but not into Cache Embeds"),
    Mistake("a file of prompts that is not there", _prompt_file, "6", "prompt_file", "There is no file"),
    Mistake("LoRA Apply without a LoRA", _no_lora, "6", "file", "LoRA Apply has no LoRA"),
    Mistake("a LoRA file that is not there", _compared, "7", "files", "No LoRA file is called 'no such*'"),
    Mistake("merging without a LoRA", _merged, "6", "file", "Save Merged Model has no LoRA"),
    Mistake("images without captions", _set(DATA, folder="uncaptioned"), DATA, "", "no caption file (one.png)"),
    Mistake("jsonl without a .jsonl file", _set(DATA, captions="jsonl"), DATA, "", "holds 0 .jsonl files"),
]  # fmt: skip


def write_files(base: Path) -> None:
    """The files that the mistakes name, below ComfyUI's base folder."""
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    (base / "input" / "empty").mkdir(parents=True, exist_ok=True)
    (base / "input" / "uncaptioned").mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(base / "input" / "uncaptioned" / "one.png")
    for folder, file, tensor, shape in (
        ("diffusion_models", "sdxl", "model.diffusion_model.input_blocks.0.0.weight", (4, 4)),
        ("text_encoders", "other_encoder", "model.embed_tokens.weight", (4, 64)),
        ("vae", "sdxl_vae", "decoder.conv_in.weight", (4, 4)),
    ):
        path = base / "models" / folder / f"{file}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({tensor: torch.zeros(shape)}, path)
