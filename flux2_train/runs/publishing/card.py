"""The model card of a LoRA: https://huggingface.co/docs/hub/model-cards, whose gallery reads ``widget``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from ...names import counted
from .facts import Facts

TAGS = ("text-to-image", "lora", "flux.2", "diffusers", "comfyui", "template:sd-lora")
DIFFUSERS = ("comfyui", "diffusers", "peft")  # formats that diffusers reads


def card(facts: Facts, file: str, pictures: Sequence[tuple[str, str]], curve: str = "") -> str:
    """The text of README.md.

    ``file`` is the LoRA's name beside it, ``pictures`` are (by the base model, with the LoRA) for each example and
    ``curve`` the picture of the loss, all as paths from the card's folder.
    """
    head = yaml.safe_dump(dict(_head(facts, pictures)), sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"# {facts.name}",
        _about(facts),
        "<Gallery />" if pictures else "",
        _trigger(facts),
        "## How to use it",
        _in_comfyui(facts, file),
        _in_diffusers(facts, file),
        _before_and_after(facts, pictures),
        "## How it was trained",
        _table(facts),
        f"![the loss over the steps]({curve})" if curve else "",
        _licence(facts),
    ]
    return f"---\n{head}---\n" + "\n\n".join(filter(None, parts)) + "\n"


def _head(facts: Facts, pictures: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    if facts.base_model:
        yield "base_model", facts.base_model
        yield "base_model_relation", "adapter"
    if facts.flavour.licence:
        given = facts.flavour.licence
        yield "license", given.code
        if given.name:
            yield from (("license_name", given.name), ("license_link", given.link))
    yield "library_name", "diffusers"
    yield "pipeline_tag", "text-to-image"
    yield "tags", list(TAGS)
    if facts.trigger:
        yield "instance_prompt", facts.trigger
    if pictures:
        yield (
            "widget",
            [
                {"text": example.prompt or facts.name, "output": {"url": painted}}
                for example, (_, painted) in zip(facts.examples, pictures, strict=True)
            ],
        )


def _about(facts: Facts) -> str:
    base = f"[{facts.base_model}](https://huggingface.co/{facts.base_model})" if facts.base_model else ""
    on = f"FLUX.2 {facts.flavour.name}, {base}" if base else f"{facts.flavour.name}, a small model for tests"
    learned = f" from {counted(facts.pictures, 'picture')}" if facts.pictures else ""
    return f"A LoRA for {on}. It has learned in {counted(facts.steps, 'step')}{learned}."


def _trigger(facts: Facts) -> str:
    return f"Trigger word: {_code(facts.trigger)}. Write it in the prompt." if facts.trigger else ""


def _in_comfyui(facts: Facts, file: str) -> str:
    return (
        f"**ComfyUI**: put `{file}` into `models/loras`. Load FLUX.2 {facts.flavour.name} and choose the file in the "
        "node Load LoRA (Model), at strength 1."
    )


def _in_diffusers(facts: Facts, file: str) -> str:
    if not facts.base_model or facts.format not in DIFFUSERS:
        return ""
    weights = "" if file.endswith("/") else f', weight_name="{file}"'
    return f"""**diffusers**, in the folder of this card (or with the name of its repository in place of `"."`):

```python
import torch
from diffusers import {facts.flavour.pipeline}

pipeline = {facts.flavour.pipeline}.from_pretrained("{facts.base_model}", torch_dtype=torch.bfloat16).to("cuda")
pipeline.load_lora_weights("."{weights})
image = pipeline({_example_prompt(facts)!r}).images[0]
```"""


def _example_prompt(facts: Facts) -> str:
    return next((example.prompt for example in facts.examples if example.prompt), facts.trigger or "a photo")


def _before_and_after(facts: Facts, pictures: Sequence[tuple[str, str]]) -> str:
    """A row for each example: the same noise, without the LoRA and with it."""
    if not pictures:
        return ""
    rows = [
        f"| {_code(example.prompt)} | ![base model]({base}) | ![with the LoRA]({painted}) |"
        for example, (base, painted) in zip(facts.examples, pictures, strict=True)
    ]
    return "\n".join(["## Before and after", "", "| prompt | base model | with this LoRA |", "|---|---|---|", *rows])


def _table(facts: Facts) -> str:
    rows = [f"| {name} | {value} |" for name, value in facts.settings]
    said = f"Trained in ComfyUI with FLUX.2 LoRA Trainer {facts.version}."
    return "\n".join([said, "", "| setting | value |", "|---|---|", f"| steps | {facts.steps} |", *rows])


def _licence(facts: Facts) -> str:
    given = facts.flavour.licence
    if given is None:
        return ""
    what = f"[{given.name}]({given.link})" if given.name else f"`{given.code}`"
    return f"## Licence\n\nThat of the base model: {what}."


def _code(text: str) -> str:
    """A person's words as code: nothing in them acts as Markdown or HTML, in a table too."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "\\|") + "`" if text.strip() else ""
