"""What kind of adapter is trained, on which layers, and from which LoRA it starts: the node Adapter Options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .base import Settings, setting, settings

NO_FILE = "none"


@settings
class AdapterSettings(Settings):
    """``start_from`` is the path of a LoRA file, empty for none. Empty restrictions leave all that was chosen."""

    kind: Literal["lora", "lokr", "loha"] = setting(
        "lora", "'lora' loads everywhere. 'lokr' and 'loha' load in ComfyUI; LoKr holds more for its size."
    )
    dora: bool = setting(
        False,
        "DoRA: learns each output's magnitude apart from its direction. Often a little better, slower, and not for "
        "diffusers. LoRA only.",
    )
    rslora: bool = setting(
        False, "Scale by alpha / sqrt(rank), which keeps large ranks (64 and more) learning. LoRA only."
    )
    dropout: float = setting(
        0.0, "Share of the adapters' inputs dropped in each step, against memorising. 0.05 to 0.1 is usual, 0 is off.",
        ge=0, le=0.99, step=0.01,
    )  # fmt: skip
    lora_plus: float = setting(
        1.0,
        "LoRA+: how many times faster the second matrix learns than the first. 16 is the paper's value, 1 is off. LoRA "
        "only.",
        ge=1, le=1000, step=0.5,
    )  # fmt: skip
    start_from: str = setting("", "A LoRA file to go on from, in any trainer's format. The rank may be raised.")
    include: str = setting(
        "",
        "Only layers whose name fits one of these patterns, such as '*.img_attn.*, *.linear2'. Empty is all that the "
        "targets chose.",
    )
    exclude: str = setting("", "No layers whose name fits one of these patterns, such as 'double_blocks.0.*'.")
    double_blocks: str = setting(
        "", "Only these double blocks, counted from 0, such as '0-3, 7'. Empty is all of them."
    )
    single_blocks: str = setting("", "Only these single blocks, counted from 0, such as '10-19'. Empty is all of them.")
    ranks: str = setting(
        "",
        "Ranks of their own: 'pattern = rank' or 'pattern = rank : alpha', one a line. The last one that fits a layer "
        "counts.",
        multiline=True,
    )
    compute: Literal["model", "fp32"] = setting(
        "model",
        "Arithmetic of the adapters: the model's (bf16 on most cards) or fp32, which is slower. Their weights are fp32 "
        "in any case.",
        advanced=True,
    )
    lokr_factor: int = setting(
        -1, "Size of LoKr's smaller factor; -1 splits evenly, the smallest file. LoKr only.",
        ge=-1, le=4096, advanced=True,
    )  # fmt: skip
    lokr_decompose_both: bool = setting(
        False, "Make LoKr's smaller factor low-rank too where the rank allows. LoKr only.", advanced=True
    )

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if self.lokr_factor != -1 and self.lokr_factor < 2:
            yield f"lokr_factor is {self.lokr_factor}; it must be -1 or at least 2."
        yield from self._meant_for("lora", dora=False, rslora=False, lora_plus=1)
        yield from self._meant_for("lokr", lokr_factor=-1, lokr_decompose_both=False)

    def _meant_for(self, kind: str, **defaults: object) -> Iterator[str]:
        """Options that do nothing for the chosen kind, and are set."""
        for name, default in defaults.items():
            if self.kind != kind and getattr(self, name) != default:
                yield f"{name} does nothing for {self.kind}; reset it to {default} or choose the kind {kind}."
