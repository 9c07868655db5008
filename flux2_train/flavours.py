"""One row per FLUX.2 flavour: sizes, files, guidance, defaults. No other module knows a flavour by its name.

Imports neither torch nor ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import nano
from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

BASE, DISTILLED = "base", "distilled"
LONGEST = 512  # tokens to which ComfyUI pads the captions of FLUX.2


@dataclass(frozen=True)
class ModelFile:
    """A model file under the name that ComfyUI's official templates use, and where it can be downloaded."""

    name: str
    folder: str
    repository: str = ""
    path: str = ""
    gated: bool = False
    generate: Callable[[], dict[str, Tensor]] | None = None

    @property
    def url(self) -> str:
        """Direct download address, empty for a file that is generated."""
        if not self.repository:
            return ""
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.path}{self.name}"


@dataclass(frozen=True)
class Licence:
    """``code`` as the hub's model cards want it; where that is ``other``, ``name`` and ``link`` say which one."""

    code: str
    name: str = ""
    link: str = ""


@dataclass(frozen=True)
class Flavour:
    """Sizes as in the transformer's state dict; steps and guidance as its makers sample it.

    ``repositories`` are those of the makers by variant, in the layout of diffusers, whose pipeline is ``pipeline``.
    """

    name: str
    hidden: int
    double_blocks: int
    single_blocks: int
    context: int
    transformers: dict[str, tuple[ModelFile, ...]]
    text_encoders: tuple[ModelFile, ...]
    vaes: tuple[ModelFile, ...]
    embedded_guidance: bool = False
    steps: dict[str, int] = field(default_factory=lambda: {BASE: 20, DISTILLED: 4})
    guidance: float = 4.0
    resolution: int = 1024
    text_length: int = LONGEST  # tokens to which captions are padded
    text_encoder_config: dict[str, Any] | None = None
    vae_module: Callable[[object], nn.Module] | None = None
    tokenizer_tensor: str = ""  # tensor in the text encoder's file that holds the tokenizer, if ComfyUI brings none
    transformers_limit: str = ""  # newest version of transformers with which ComfyUI can build that tokenizer
    recipe: dict[str, float | int] = field(default_factory=dict)  # what a recipe sets here in place of its own values
    repositories: dict[str, str] = field(default_factory=dict)
    licence: Licence | None = None
    pipeline: str = "Flux2KleinPipeline"

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(hidden, double blocks, single blocks, context): different for every flavour."""
        return self.hidden, self.double_blocks, self.single_blocks, self.context

    def transformer_files(self, variant: str) -> tuple[ModelFile, ...]:
        """Known transformer files, the preferred first; ``auto`` puts the base variant before the distilled."""
        if variant == "auto":
            return tuple(f for files in self.transformers.values() for f in files)
        if variant not in self.transformers:
            known = " and ".join(self.transformers)
            raise UserError(f"{self.name} has no {variant} variant (it has: {known}); choose another variant.")
        return self.transformers[variant]

    def variant_of(self, file_name: str) -> str | None:
        """Base or distilled by file name, ``None`` if the name does not tell. The weights look the same in both."""
        for variant, files in self.transformers.items():
            if any(file_name == f.name for f in files):
                return variant
        if len(self.transformers) == 1:
            return next(iter(self.transformers))
        lowered = file_name.lower()
        return BASE if BASE in lowered else DISTILLED if DISTILLED in lowered else None


def _hub(name: str) -> str:
    return f"black-forest-labs/{name}"


def _not_commercial(name: str, repository: str) -> Licence:
    return Licence("other", name, f"https://huggingface.co/{_hub(repository)}")


def _bfl(name: str, repository: str, gated: bool = False) -> ModelFile:
    return ModelFile(name, "diffusion_models", _hub(repository), gated=gated)


def _comfy(name: str, folder: str, repository: str) -> ModelFile:
    return ModelFile(name, folder, f"Comfy-Org/{repository}", f"split_files/{folder}/")


_FLUX2_VAE = (_comfy("flux2-vae.safetensors", "vae", "flux2-dev"),)

# fmt: off
_ROWS = (
    Flavour(
        "klein-9b", 4096, 8, 24, 12288,
        transformers={
            BASE: (
                _bfl("flux-2-klein-base-9b.safetensors", "FLUX.2-klein-base-9B", gated=True),
                _bfl("flux-2-klein-base-9b-fp8.safetensors", "FLUX.2-klein-base-9b-fp8", gated=True),
            ),
            DISTILLED: (
                _bfl("flux-2-klein-9b.safetensors", "FLUX.2-klein-9B", gated=True),
                _bfl("flux-2-klein-9b-fp8.safetensors", "FLUX.2-klein-9b-fp8", gated=True),
                _bfl("flux-2-klein-9b-kv-fp8.safetensors", "FLUX.2-klein-9b-kv-fp8", gated=True),
            ),
        },
        text_encoders=(_comfy("qwen_3_8b_fp8mixed.safetensors", "text_encoders", "flux2-klein-9B"),),
        vaes=_FLUX2_VAE,
        repositories={BASE: _hub("FLUX.2-klein-base-9B"), DISTILLED: _hub("FLUX.2-klein-9B")},
        licence=_not_commercial("flux-non-commercial-license", "FLUX.2-klein-9B"),
    ),
    Flavour(
        "klein-4b", 3072, 5, 20, 7680,
        transformers={
            BASE: (
                _comfy("flux-2-klein-base-4b.safetensors", "diffusion_models", "flux2-klein"),
                _bfl("flux-2-klein-base-4b-fp8.safetensors", "FLUX.2-klein-base-4b-fp8"),
            ),
            DISTILLED: (
                _comfy("flux-2-klein-4b.safetensors", "diffusion_models", "flux2-klein"),
                _bfl("flux-2-klein-4b-fp8.safetensors", "FLUX.2-klein-4b-fp8"),
            ),
        },
        text_encoders=(_comfy("qwen_3_4b.safetensors", "text_encoders", "flux2-klein"),),
        vaes=_FLUX2_VAE,
        repositories={BASE: _hub("FLUX.2-klein-base-4B"), DISTILLED: _hub("FLUX.2-klein-4B")},
        licence=Licence("apache-2.0"),
    ),
    Flavour(
        "dev", 6144, 8, 48, 15360,
        transformers={
            BASE: (
                _comfy("flux2_dev_fp8mixed.safetensors", "diffusion_models", "flux2-dev"),
                _bfl("flux2-dev.safetensors", "FLUX.2-dev", gated=True),
            )
        },
        text_encoders=(
            _comfy("mistral_3_small_flux2_fp8.safetensors", "text_encoders", "flux2-dev"),
            _comfy("mistral_3_small_flux2_bf16.safetensors", "text_encoders", "flux2-dev"),
        ),
        vaes=_FLUX2_VAE,
        embedded_guidance=True,
        tokenizer_tensor="tekken_model",
        repositories={BASE: _hub("FLUX.2-dev")},
        licence=_not_commercial("flux-dev-non-commercial-license", "FLUX.2-dev"),
        pipeline="Flux2Pipeline",
        transformers_limit="4.57.6",
    ),
    Flavour(
        "nano", nano.HIDDEN, nano.DOUBLE_BLOCKS, nano.SINGLE_BLOCKS, nano.CONTEXT,
        transformers={BASE: (ModelFile(nano.TRANSFORMER, "diffusion_models", generate=nano.transformer),)},
        text_encoders=(ModelFile(nano.TEXT_ENCODER, "text_encoders", generate=nano.text_encoder),),
        vaes=(ModelFile(nano.VAE, "vae", generate=nano.vae),),
        guidance=nano.GUIDANCE,
        resolution=nano.RESOLUTION,
        text_length=nano.TEXT_LENGTH,
        recipe={"learning_rate": 2e-3, "steps": 300},  # minutes on a processor; 1e-4 would teach it nothing
        text_encoder_config=nano.TEXT_ENCODER_CONFIG,
        vae_module=nano.vae_module,
    ),
)

# fmt: on

FLAVOURS: dict[str, Flavour] = {row.name: row for row in _ROWS}


def flavour(name: str) -> Flavour:
    """The row of that name. Raises UserError for an unknown one."""
    if name not in FLAVOURS:
        raise UserError(f"Unknown flavour {name!r}; choose one of {', '.join(FLAVOURS)}.")
    return FLAVOURS[name]


def by_sizes(sizes: tuple[int, int, int, int]) -> Flavour | None:
    """The flavour with these (hidden, double, single, context) sizes, ``None`` if there is none."""
    return next((row for row in _ROWS if row.sizes == sizes), None)
