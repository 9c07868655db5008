"""From parts to the tensors of a LoRA file, in the formats that other programs read.

``comfyui``: ``diffusion_model.<name>.lora_A/lora_B.weight`` with the scale multiplied into B and no ``.alpha`` keys.
This is the one form that ComfyUI, diffusers and ai-toolkit all load at the same strength: diffusers raises on
``.alpha``, and ComfyUI never reads an alpha from the header. LoHa and LoKr get LyCORIS's names and an alpha equal to
their rank (without one OneTrainer assumes its own). DoRA gets a ``dora_scale`` for ComfyUI's norm. diffusers reads
neither LoHa, LoKr nor ``dora_scale``.

``diffusers``: the same for plain LoRA. DoRA has diffusers' layer names and a ``lora_magnitude_vector``, which diffusers
and OneTrainer read and ComfyUI's own loader ignores.

``kohya``: ``lora_unet_*`` with ``.alpha``, for ComfyUI, diffusers and musubi-tuner.

``peft``: peft's own folder, with diffusers' layer names; diffusers reads it too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from ..settings.base import choices
from ..settings.saving import SaveSettings
from .dora import is_dora
from .names import in_diffusers
from .parts import Decomposed, Full, Hadamard, Kronecker, LowRank, Part, Rotation, Split, rows, size_of

FORMATS = choices(SaveSettings, "format")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PREFIX, PEFT, VECTOR = "diffusion_model.", "base_model.model.", ".lora_magnitude_vector"


def tensors(parts: dict[str, Part], format: str = "comfyui", dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The tensors of a LoRA file, on the CPU. Raises UserError naming what the format cannot carry exactly.

    A DoRA must have the form of that format, ComfyUI's (``of_base``) or the paper's: see ``dora.with_norm``.
    """
    require_carried(parts, format)
    write = {"comfyui": _dotted, "diffusers": _diffusers, "kohya": _kohya, "peft": _peft}[format]
    by_key = {}
    for name, part in parts.items():
        for key, tensor in write(name, part).items():
            by_key[key] = _stored(key, tensor, dtype)
    return by_key


def require_carried(parts: dict[str, Part], format: str) -> None:
    """Raise UserError naming the first part that ``format`` cannot carry exactly."""
    if format not in FORMATS:
        raise UserError(f"Unknown LoRA format {format!r}; choose one of {', '.join(FORMATS)}.")
    for name, part in parts.items():
        why = _refusal(name, part, format)
        if why:
            other = "as plain LoRA" if format == "comfyui" else "in format 'comfyui', or as plain LoRA"
            raise UserError(
                f"The format {format!r} cannot carry the {kind(part)} at {name}: {why}. Save {other}, which states its "
                "error."
            )


def divides_by_base(format: str) -> bool:
    """Whether DoRA in that format is divided by the norm of the base weight."""
    return format in ("comfyui", "kohya")


def kind(part: Part) -> str:
    """The name of a part's kind, for messages."""
    match part:
        case LowRank():
            return "LoRA" if part.magnitude is None else "DoRA"
        case Hadamard():
            return "LoHa"
        case Kronecker():
            return "LoKr"
        case Full():
            return "full matrix"
        case Decomposed():
            return f"DoRA on {kind(part.part)}" + (" over inputs" if part.of_inputs else "")
        case Rotation():
            return "OFT" if len(part.stages) == 1 else "BOFT"
        case Split():
            return f"{kind(part.parts[0])} on parts of a layer"


def _refusal(name: str, part: Part, format: str) -> str:
    what = kind(part)
    if format != "comfyui" and isinstance(part, Split):
        return "it has one adapter for a whole layer"
    if isinstance(part, Rotation) or (isinstance(part, Split) and any(isinstance(p, Rotation) for p in part.parts)):
        return "it is read here but not written"
    if isinstance(part, Full | Decomposed) and (format != "comfyui" or isinstance(getattr(part, "part", None), Full)):
        return "it has no keys for it"
    if format == "comfyui":
        return ""
    match format, what:
        case "diffusers", "LoHa" | "LoKr":
            return "diffusers has none"
        case "kohya", "DoRA":
            return "the programs that read it drop its magnitudes"
        case "peft", "LoKr":
            return "peft fixes the sizes of its factors, which are others for q, k and v on their own"
        case ("peft", _) | ("diffusers", "DoRA") if not in_diffusers(name):
            return "diffusers has no such layer"
    return ""


def _stored(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # A magnitude scales the whole weight: rounded to bf16 it would change more than a small LoRA does.
    exact = key.endswith((".dora_scale", ".alpha")) or ".lora_magnitude_vector" in key
    stored = tensor.detach().to("cpu", torch.float32 if exact else dtype).clone(memory_format=torch.contiguous_format)
    if not stored.isfinite().all():
        raise UserError(f"{key} holds values that {dtype} cannot; save in fp32 or bf16.")
    return stored


def _dotted(name: str, part: Part) -> dict[str, Tensor]:
    if isinstance(part, Split):
        stems = [stem for alternative in in_diffusers(name)[:1] for stem in alternative]
        count = part.out // len(stems)
        pieces = [(stems[start // count], piece) for start, piece in zip(part.starts, part.parts, strict=True)]
        return {key: t for stem, piece in pieces for key, t in _folded(f"transformer.{stem}", piece).items()}
    return _folded(PREFIX + name, part)


def _folded(stem: str, part: Part) -> dict[str, Tensor]:
    """Tensors with the scale multiplied in. LoRA gets no ``.alpha``, which programs read differently.

    LoHa and LoKr get an alpha equal to their rank, which is scale 1.
    """
    match part:
        case LowRank():
            by_key = {f"{stem}.lora_A.weight": part.down, f"{stem}.lora_B.weight": part.up.float() * part.scale}
            if part.magnitude is not None:
                by_key[f"{stem}.dora_scale"] = _magnitude(stem, part, of_base=True)[:, None]
            return by_key
        case Hadamard():
            return _loha(stem, part, part.scale) | {f"{stem}.alpha": torch.tensor(float(len(part.down1)))}
        case Kronecker():
            return _lokr(stem, part)
        case Full():
            return {f"{stem}.diff": part.diff}
        case Decomposed():
            scale = part.magnitude if part.of_inputs else _magnitude(stem, part, of_base=True)
            return _folded(stem, part.part) | {f"{stem}.dora_scale": scale[None] if part.of_inputs else scale[:, None]}
    raise ValueError(f"{kind(part)} at {stem}")


def _diffusers(name: str, part: Part) -> dict[str, Tensor]:
    if not is_dora(part):
        return _dotted(name, part)
    by_key = {f"transformer.{key.removeprefix(PEFT)}": tensor for key, tensor in _peft(name, part).items()}
    return {f"{key}.weight" if key.endswith(VECTOR) else key: tensor for key, tensor in by_key.items()}


def _kohya(name: str, part: Part) -> dict[str, Tensor]:
    stem = f"lora_unet_{name.replace('.', '_')}"
    match part:
        case LowRank():
            by_key = {f"{stem}.lora_down.weight": part.down, f"{stem}.lora_up.weight": part.up}
            return by_key | {f"{stem}.alpha": torch.tensor(part.scale * len(part.down))}
        case Hadamard():
            return _loha(stem, part, 1.0) | {f"{stem}.alpha": torch.tensor(part.scale * len(part.down1))}
        case Kronecker():
            return _lokr(stem, part)


def _loha(stem: str, part: Hadamard, scale: float) -> dict[str, Tensor]:
    return {
        f"{stem}.hada_w1_a": part.up1.float() * scale,
        f"{stem}.hada_w1_b": part.down1,
        f"{stem}.hada_w2_a": part.up2,
        f"{stem}.hada_w2_b": part.down2,
    }


def _lokr(stem: str, part: Kronecker) -> dict[str, Tensor]:
    left, right = part.left, part.right
    if len(left) == len(right) == 2 and len(left[1]) != len(right[1]):
        left = (left[0] @ left[1],)  # one alpha cannot serve two ranks
    left = (left[0].float() * part.scale, *left[1:])
    by_key = {}
    for factor, matrices in (("w1", left), ("w2", right)):
        ends = ("",) if len(matrices) == 1 else ("_a", "_b")
        by_key |= {f"{stem}.lokr_{factor}{end}": matrix for end, matrix in zip(ends, matrices, strict=True)}
    # alpha = rank is scale 1 for every reader; undecomposed factors have no rank, so programs that want one get 1
    rank = next((len(factor[1]) for factor in (right, left) if len(factor) == 2), 1)
    return by_key | {f"{stem}.alpha": torch.tensor(float(rank))}


def _magnitude(stem: str, part: LowRank | Decomposed, of_base: bool) -> Tensor:
    if part.of_base != of_base:
        raise ValueError(f"the DoRA at {stem} is of the {'base' if part.of_base else 'adapted'} weight's norm")
    return part.magnitude


def _peft(name: str, part: Part) -> dict[str, Tensor]:
    stems = in_diffusers(name)[0]
    count, by_key = size_of(part)[1] // len(stems), {}
    for index, stem in enumerate(stems):
        piece, stem = rows(part, index * count, count), f"{PEFT}{stem}"
        if isinstance(piece, Hadamard):
            by_key |= _loha(stem, piece, piece.scale)
            continue
        by_key |= {f"{stem}.lora_A.weight": piece.down, f"{stem}.lora_B.weight": piece.up.float() * piece.scale}
        if piece.magnitude is not None:
            by_key[f"{stem}{VECTOR}"] = _magnitude(stem, piece, of_base=False)
    return by_key


def peft_config(parts: dict[str, Part]) -> dict:
    """The content of ``adapter_config.json`` beside ``tensors(parts, "peft")``; the scale is in the tensors."""
    require_carried(parts, "peft")
    kinds = {kind(part) for part in parts.values()}
    if len(kinds) > 1:
        raise UserError(f"peft's folder holds one kind of adapter, these are {', '.join(sorted(kinds))}.")
    config = _config({stem: len(_down(part)) for name, part in parts.items() for stem in in_diffusers(name)[0]})
    if kinds == {"LoHa"}:
        return {"peft_type": "LOHA", "alpha": config["r"], "inference_mode": True, **config}
    dora = kinds == {"DoRA"}
    return {"peft_type": "LORA", "lora_alpha": config["r"], "use_dora": dora, "inference_mode": True, **config}


def diffusers_config(parts: dict[str, Part], format: str) -> dict:
    """The configuration that diffusers needs for a LoRA of several ranks, empty if it needs none.

    Without it diffusers (0.38) takes the first rank in the file for the alpha of all layers. The ranks here are those
    of the file, except in kohya's format: there diffusers splits a qkv whose q, k and v have columns of their own.
    """
    dora = any(map(is_dora, parts.values()))
    if not all(isinstance(part, LowRank) and in_diffusers(name) for name, part in parts.items()):
        return {}
    if dora and divides_by_base(format):  # diffusers does not read this form
        return {}
    ranks = {}
    for name, part in parts.items():
        stems = in_diffusers(name)[0]
        is_split = format == "kohya" and len(stems) > 1 and _in_blocks(part.up, len(stems))
        ranks |= dict.fromkeys(stems, len(part.down) // len(stems) if is_split else len(part.down))
    if len(set(ranks.values())) < 2:
        return {}
    config = _config(ranks)
    return {"lora_alpha": config["r"], "use_dora": dora, **config}


def _config(ranks: dict[str, int]) -> dict:
    rank = max(ranks.values())
    patterns = {stem: r for stem, r in ranks.items() if r != rank}
    return {"r": rank, "rank_pattern": patterns, "alpha_pattern": patterns, "target_modules": sorted(ranks)}


def _in_blocks(up: Tensor, count: int) -> bool:
    """Whether ``up`` (out, rank) is block-diagonal, with ``count`` blocks of equal size."""
    if up.shape[1] % count:
        return False
    own = torch.block_diag(*[torch.ones(up.shape[0] // count, up.shape[1] // count)] * count).bool()
    return not up[~own.to(up.device)].any()


def _down(part: LowRank | Hadamard) -> Tensor:
    return part.down if isinstance(part, LowRank) else part.down1
