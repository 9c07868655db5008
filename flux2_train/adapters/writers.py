"""Which program wrote a LoRA file, told from its key names and header, where one key has several meanings.

``dora_scale``: ComfyUI divides rows by the norm of the base weight, and our files are written for that. LyCORIS (which
SimpleTuner and musubi-tuner call) and OneTrainer use the same key for the paper's form, with the adapted weight's norm.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .names import is_underscored

DORA, ALPHA = ".dora_scale", ".alpha"
OURS, ONETRAINER = "flux2_train.", "ot_"  # how keys of headers begin
COMFYUIS = "diffusion_model."
ASSUMED = "its dora_scale is taken as ComfyUI takes it, since nothing in the file says which program wrote it"


def divides_by_base(stem: str, has_alpha: bool, header: Mapping[str, str]) -> bool:
    """Whether the ``dora_scale`` at a key's stem is meant for the norm of the base weight, as ComfyUI reads it.

    Three kinds of names mean the paper's form, because only programs that use it write them: names with underscores
    (LyCORIS, kohya), names without ComfyUI's prefix (OneTrainer's other formats), and ComfyUI's names with an alpha
    (OneTrainer's format for ComfyUI).
    """
    if _says(header, OURS):
        return True
    return not _says(header, ONETRAINER) and stem.startswith(COMFYUIS) and not has_alpha


def assumed(tensors: Mapping[str, Tensor]) -> str:
    """A clause that says what is assumed about a file's DoRA; empty if it is known which program wrote the file."""
    header = getattr(tensors, "header", {})
    if _says(header, OURS) or _says(header, ONETRAINER):
        return ""
    stems = [key.removesuffix(DORA) for key in tensors if key.endswith(DORA)]
    unknown = any(stem.startswith(COMFYUIS) and stem + ALPHA not in tensors for stem in stems)
    return ASSUMED if unknown else ""


def constraint(stem: str, alpha: float | None, rotated: int) -> float:
    """The largest norm of OFT's generators, 0 for none: ``alpha`` in ComfyUI's files, times the size in LyCORIS's.

    ``rotated`` is the number of rows that are rotated.
    """
    return (alpha or 0.0) * (rotated if is_underscored(stem) else 1)


def _says(header: Mapping[str, str], start: str) -> bool:
    return any(key.startswith(start) for key in header)
