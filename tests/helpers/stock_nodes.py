"""ComfyUI's own nodes that take a MODEL: which there are, and what one of them gives for a MODEL."""

from __future__ import annotations

import asyncio
import inspect
import random
from functools import cache

import comfy.samplers
import comfy.utils
import comfy_extras.nodes_custom_sampler as custom
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

import nodes as core

SIDE = 2  # of the latents, in tokens
SMALL = {
    "steps": 1, "batch_size": 1, "rank": 2, "width": 64, "height": 64, "length": 1, "add_noise": True, "seed": 0,
    "noise_seed": 0, "sampler_name": "euler", "scheduler": "simple", "cfg": 2.0, "ratio": 0.5,
}  # fmt: skip


@cache
def taking_a_model() -> dict[str, type]:
    """The classes by name, of core's nodes.py and of comfy_extras."""
    before = dict(core.NODE_CLASS_MAPPINGS)
    failed = asyncio.run(core.init_builtin_extra_nodes())
    found = {name: kind for name, kind in core.NODE_CLASS_MAPPINGS.items() if "MODEL" in _types(kind).values()}
    core.NODE_CLASS_MAPPINGS.clear()
    core.NODE_CLASS_MAPPINGS.update(before)
    assert set(failed) <= {"nodes_replacements.py"}, failed  # which has no nodes, and wants a server
    return found


def _types(kind: type) -> dict[str, object]:
    return {name: options[0] for name, options in _inputs(kind).items()}


def _inputs(kind: type) -> dict[str, tuple]:
    asked = kind.INPUT_TYPES()
    wired = {name: options for name, options in asked.get("optional", {}).items() if options[0] == "MODEL"}
    return {**asked.get("required", {}), **wired}


class Lacking(Exception):
    """A node needs something that belongs to another kind of model."""


class World:
    """What nodes are wired to: inputs by their type."""

    def __init__(self, clip, vae, context: int):
        generator = torch.Generator().manual_seed(0)
        self.latent = {"samples": torch.randn(1, 128, SIDE, SIDE, generator=generator)}
        self.positive, self.negative, self.empty = (
            [[torch.randn(1, 7, context, generator=generator), {}]] for _ in range(3)
        )
        self.image = torch.rand(1, 64, 64, 3, generator=generator)
        self.clip, self.vae = clip, vae

    def wired(self, kind: str, name: str, model, other):
        """An input of that type."""
        match kind:
            case "MODEL":
                return other if name in ("model2", "model_negative", "empty_model") else model
            case "CLIP":
                return self.clip
            case "VAE":
                return self.vae
            case "CONDITIONING":
                # three different ones: PerpNegGuider divides by how far the prompt is from the empty one
                return self.negative if "neg" in name else self.empty if "empty" in name else self.positive
            case "LATENT":
                return self.latent
            case "IMAGE":
                return self.image
            case "MASK":
                return torch.ones(1, 64, 64)
            case "NOISE":
                return custom.RandomNoise.execute(0)[0]
            case "SAMPLER":
                return custom.KSamplerSelect.execute("euler")[0]
            case "SIGMAS":
                return torch.tensor([1.0, 0.5, 0.0])
            case "LATENT_OPERATION":
                return lambda latent, **_: latent * 0.5
            case "LORA_MODEL":
                layer = "diffusion_model.single_blocks.0.linear1"
                into, out = self.sizes
                up, down = torch.full((out, 2), 0.01), torch.full((2, into), 0.01)
                return {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}
        raise Lacking(kind)

    def outcome(self, kind: type, model, other):
        """What a node gives for these MODELs: plain values and tensors, or the error that it raises."""
        self.sizes = _sizes(model)
        torch.manual_seed(0)
        random.seed(0)
        try:
            return [self._plain(value) for value in self._run(kind, model, other)]
        except Lacking:
            raise
        except Exception as error:
            return type(error).__name__, str(error)

    def _run(self, kind: type, model, other):
        given = {name: self._value(name, options, model, other) for name, options in _inputs(kind).items()}
        given = {name: value for name, value in given.items() if value is not None}
        if issubclass(kind, io.ComfyNode):
            node = kind.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})
            call = node.EXECUTE_NORMALIZED
            assert not inspect.iscoroutinefunction(kind.execute), kind
        else:
            call = getattr(kind(), kind.FUNCTION)
        if getattr(kind, "INPUT_IS_LIST", False):
            given = {name: [value] for name, value in given.items()}
        found = call(**given)
        found = found.args if isinstance(found, io.NodeOutput) else found
        return found if isinstance(found, tuple) else (found,)

    def _value(self, name: str, options: tuple, model, other):
        kind, more = options[0], options[1] if len(options) > 1 else {}
        if isinstance(kind, list):
            return SMALL[name] if SMALL.get(name) in kind else more.get("default", kind[0] if kind else None)
        if kind == "COMBO":
            choices = list(more.get("options", ()))
            return SMALL[name] if SMALL.get(name) in choices else more.get("default", choices[0] if choices else None)
        if kind in ("INT", "FLOAT", "BOOLEAN", "STRING"):
            empty = {"INT": 1, "FLOAT": 1.0, "BOOLEAN": False, "STRING": ""}[kind]
            return SMALL[name] if name in SMALL else more.get("default", empty)
        return self.wired(kind, name, model, other)

    def _plain(self, value):
        """A value that can be compared; what a MODEL or a GUIDER gives is sampled."""
        if COMPILE_KEY in getattr(value, "wrappers", {}).get(WrappersMP.APPLY_MODEL, {}):
            return "compiled when it is sampled"
        if hasattr(value, "model_state_dict"):
            return self.sampled(value)
        if isinstance(value, comfy.samplers.CFGGuider):
            sigmas = torch.tensor([1.0, 0.0])
            return value.sample(torch.zeros_like(self.latent["samples"]), self.latent["samples"],
                                comfy.samplers.sampler_object("euler"), sigmas, seed=0)  # fmt: skip
        if isinstance(value, dict):
            return {key: self._plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._plain(each) for each in value]
        return value if isinstance(value, (torch.Tensor, int, float, str, type(None))) else type(value).__name__

    def sampled(self, model) -> torch.Tensor:
        """Latents after one step of Euler."""
        return core.common_ksampler(model, 0, 1, 2.0, "euler", "simple", self.positive, self.negative, self.latent)[0][
            "samples"
        ]


def _sizes(model) -> tuple[int, int]:
    layer = model.model.diffusion_model.single_blocks[0].linear1
    return layer.in_features, layer.out_features


def same(one, other) -> bool:
    """Whether two outcomes are equal, tensors bit by bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other
