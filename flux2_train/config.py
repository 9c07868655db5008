"""What the user asked for, typed and checked before any model is loaded."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass

from .adapters.targets import PRESETS
from .errors import UserError

KINDS = ("lora", "lokr", "loha")


@dataclass(frozen=True)
class AdapterConfig:
    """What kind of adapter, and on which of the chosen layers.

    ``rslora`` scales by alpha / sqrt(rank) instead of alpha / rank. ``dropout`` is of the adapter's input.
    ``lora_plus`` is how many times faster B learns than A; 1 is off. ``compute`` is the adapter's own arithmetic: the
    model's or fp32. ``lokr_factor`` -1 splits as evenly as can be; ``lokr_decompose_both`` makes both factors low-rank.
    ``include``, ``exclude``: glob patterns on layer names, with commas between. ``double_blocks``, ``single_blocks``:
    block numbers such as ``0-3, 7``. ``ranks``: ``pattern = rank`` or ``pattern = rank : alpha``, with commas between;
    the last that fits a layer holds. Empty means no restriction.
    """

    kind: str = "lora"
    dora: bool = False
    rslora: bool = False
    dropout: float = 0.0
    lora_plus: float = 1.0
    compute: str = "model"
    lokr_factor: int = -1
    lokr_decompose_both: bool = False
    include: str = ""
    exclude: str = ""
    double_blocks: str = ""
    single_blocks: str = ""
    ranks: str = ""

    def __post_init__(self):
        for problem in self._problems():
            raise UserError(problem)

    def _problems(self):
        if self.kind not in KINDS:
            yield f"adapter kind is {self.kind!r}; choose one of {', '.join(KINDS)}."
        if self.compute not in ("model", "fp32"):
            yield f"adapter compute is {self.compute!r}; choose 'model' or 'fp32'."
        if not 0 <= self.dropout < 1:
            yield f"adapter dropout is {self.dropout}; it must be at least 0 and below 1."
        if self.lora_plus < 1:
            yield f"lora_plus is {self.lora_plus}; it must be at least 1, which is off (16 is usual)."
        if self.lokr_factor != -1 and self.lokr_factor < 2:
            yield f"lokr_factor is {self.lokr_factor}; it must be -1 or at least 2."
        for name, default in (("dora", False), ("rslora", False), ("lora_plus", 1)):
            if self.kind != "lora" and getattr(self, name) != default:
                yield f"{name} belongs to LoRA and does nothing for {self.kind}; turn it off or choose kind 'lora'."
        for name, default in (("lokr_factor", -1), ("lokr_decompose_both", False)):
            if self.kind != "lokr" and getattr(self, name) != default:
                yield f"{name} belongs to LoKr and does nothing for {self.kind}; reset it or choose kind 'lokr'."


@dataclass(frozen=True)
class TrainConfig:
    """One training run. ``epochs`` is used when ``steps`` is 0; ``alpha`` 0 means equal to ``rank``.

    ``preservation`` weighs the loss that keeps the class word's prediction as the base model's; 0 is off.
    A step takes ``accumulate`` batches of ``batch`` images in each process. ``differential_guidance`` 1 is off.
    ``guidance`` is the embedded guidance that dev is trained at.
    """

    name: str = "flux2_lora"
    rank: int = 16
    alpha: float = 0.0
    steps: int = 1000
    epochs: int = 0
    learning_rate: float = 1e-4
    batch: int = 1
    accumulate: int = 1
    seed: int = 0
    targets: str = "all"
    adapter: AdapterConfig = AdapterConfig()
    checkpointing: bool = True
    preservation: float = 0.0
    differential_guidance: float = 1.0
    guidance: float = 1.0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    validation_items: int = 4

    def __post_init__(self):
        for problem in self._problems():
            raise UserError(problem)

    @property
    def scale_alpha(self) -> float:
        """The alpha in force."""
        return self.alpha or float(self.rank)

    def _problems(self):
        if not re.fullmatch(r"[^\\/:*?\"<>|\x00-\x1f]+", self.name) or self.name.strip(". ") == "":
            yield f"The name {self.name!r} cannot be a file name; use letters, digits, spaces, '-', '_' or '.'."
        at_least = {"rank": 1, "batch": 1, "accumulate": 1, "steps": 0, "epochs": 0, "validation_items": 0}
        for field, least in at_least.items():
            if getattr(self, field) < least:
                yield f"{field} is {getattr(self, field)}; it must be at least {least}."
        if not self.steps and not self.epochs:
            yield "steps and epochs are both 0; set one of them."
        if not 0 < self.learning_rate <= 1:
            yield f"learning rate is {self.learning_rate}; it must lie between 0 and 1 (1e-4 is a good value)."
        if self.targets not in PRESETS:
            yield f"targets is {self.targets!r}; choose one of {', '.join(PRESETS)}."
        if self.preservation < 0 or self.differential_guidance <= 0 or self.alpha < 0:
            yield "preservation and alpha must not be negative, differential guidance must be above 0."

    def to_json(self) -> str:
        """The configuration as JSON, for the run folder and the LoRA's metadata."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Inverse of ``to_json``. Raises UserError for a field that does not exist."""
        values = json.loads(text)
        if "adapter" in values:
            values["adapter"] = _build(AdapterConfig, values["adapter"])
        return _build(cls, values)


def _build(kind: type, values: dict):
    unknown = values.keys() - {f.name for f in dataclasses.fields(kind)}
    if unknown:
        raise UserError(f"Unknown settings: {', '.join(sorted(unknown))}.")
    return kind(**values)
