"""The training options beside LoRA Trainer's face, in sections; every default is what the trainer does without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from .section import INF, Section, choices, ranges


@dataclass(frozen=True)
class TimestepConfig(Section):
    """Which times ``t`` are trained on (1 is pure noise), and how much each counts.

    ``values`` are times for ``list`` (above 1 they are thousandths) and heights at equal distances for ``curve``.
    ``strata`` 0 draws independently. ``weights`` are for weighting ``table``, at equal distances over t.
    """

    DISTRIBUTIONS: ClassVar[tuple] = ("sigmoid", "uniform", "weighted", "beta", "mode", "curve", "list", "round robin")
    SHIFTS: ClassVar[tuple] = ("linear", "empirical", "constant", "none")
    BIASES: ClassVar[tuple] = ("balanced", "high noise", "low noise")
    WEIGHTINGS: ClassVar[tuple] = ("none", "sigma_sqrt", "cosmap", "bell", "measured", "table")

    distribution: str = "sigmoid"
    scale: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    alpha: float = 2.0
    beta: float = 2.0
    mode_scale: float = 1.29
    values: tuple[float, ...] = ()
    shift: str = "linear"
    shift_factor: float = 3.0
    shift_steps: int = 20
    bias: str = "balanced"
    least: float = 0.0
    most: float = 1.0
    strata: int = 0
    weighting: str = "none"
    weights: tuple[float, ...] = ()

    @property
    def listed(self) -> bool:
        """The times are given one by one: they are neither shifted nor moved."""
        return self.distribution in ("list", "round robin")

    @property
    def times(self) -> tuple[float, ...]:
        """The listed times in 0..1, without those outside the limits."""
        times = self.values if max(self.values, default=0) <= 1 else tuple(v / 1000 for v in self.values)
        return tuple(t for t in times if self.least <= t <= self.most)

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from choices(self, distribution=self.DISTRIBUTIONS, shift=self.SHIFTS, bias=self.BIASES,
                            weighting=self.WEIGHTINGS)  # fmt: skip
        yield from ranges(self, scale=(0.01, 100), std=(0.01, 100), alpha=(0.01, 1000), beta=(0.01, 1000),
                           mode_scale=(-1, 1.75), shift_factor=(0.01, 100), shift_steps=(1, 1000), strata=(0, 100_000),
                           least=(0, 1), most=(0, 1))  # fmt: skip
        if self.least >= self.most:
            yield f"The times are limited to {self.least:g}..{self.most:g}; the least must be below the most."
        if self.listed and not self.times:
            yield f"The distribution {self.distribution!r} has no time within its limits; list some, like 1, 0.5."
        if self.listed and min(self.values) <= 0:
            yield f"The list of times holds {min(self.values):g}; every time must be above 0."
        if self.distribution == "curve" and not _is_density(self.values):
            yield "The distribution 'curve' needs two heights or more, none below 0 and not all of them 0."
        if self.distribution == "weighted" and self.weighting != "none":
            yield "The distribution 'weighted' brings the measured weighting with it; set weighting to 'none'."
        if self.weighting == "table" and not _is_density(self.weights):
            yield "The weighting 'table' needs two weights or more, none below 0 and not all of them 0."


def _is_density(values: tuple[float, ...]) -> bool:
    return len(values) >= 2 and min(values) >= 0 and 0 < max(values) < INF


@dataclass(frozen=True)
class LossConfig(Section):
    """How far a prediction is from its target. ``width`` is Huber's c, ``detail`` the weight of the fine wavelets.

    ``least`` and ``most`` clamp each sample's loss, 0 for no limit.
    """

    KINDS: ClassVar[tuple] = ("mse", "mae", "huber", "smooth_l1", "wavelet")
    WIDTH_SCHEDULES: ClassVar[tuple] = ("constant", "exponential", "snr")

    kind: str = "mse"
    width: float = 0.1
    width_schedule: str = "constant"
    detail: float = 2.0
    least: float = 0.0
    most: float = 0.0

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from choices(self, kind=self.KINDS, width_schedule=self.WIDTH_SCHEDULES)
        yield from ranges(self, width=(1e-4, 10), detail=(0, 100), least=(0, INF), most=(0, INF))
        if self.most and self.least >= self.most:
            yield f"The loss is clamped to {self.least:g}..{self.most:g}; the least must be below the most."


@dataclass(frozen=True)
class GuidanceConfig(Section):
    """Guidance in training. ``most`` above 0 draws dev's embedded guidance between TrainConfig's ``guidance`` and it.

    ``contrastive`` 1 and ``cfg`` 1 are off. ``references`` says at which time reference images are shown.
    """

    SCHEDULES: ClassVar[tuple] = ("constant", "sigma")
    REFERENCES: ClassVar[tuple] = ("index", "index_timestep_zero")

    most: float = 0.0
    contrastive: float = 1.0
    contrastive_schedule: str = "constant"
    contrastive_project: bool = False
    cfg: float = 1.0
    references: str = "index"

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from choices(self, contrastive_schedule=self.SCHEDULES, references=self.REFERENCES)
        yield from ranges(self, most=(0, 100), contrastive=(0, 100), cfg=(0, 100))
        if self.contrastive != 1 and self.cfg != 1:
            yield "Contrastive guidance and true CFG are both on; they teach the same twice, choose one of them."


@dataclass(frozen=True)
class PreservationConfig(Section):
    """What TrainConfig's ``preservation`` weighs: the caption with the class word, or no caption at all (``blank``).

    ``every`` n-th step only. ``together`` runs both adapter-on passes as one, with both graphs in memory.
    ``outside_mask`` weighs the base model's prediction where an item's mask is dark; 0 is off.
    """

    KINDS: ClassVar[tuple] = ("class", "blank")

    kind: str = "class"
    every: int = 1
    together: bool = False
    outside_mask: float = 0.0

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from choices(self, kind=self.KINDS)
        yield from ranges(self, every=(1, 1_000_000), outside_mask=(0, 1000))


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """How gradients become steps. ``warmup`` below 1 is a part of all steps, from 1 a number of them.

    ``end`` is the learning rate's last value as a part of the first. ``block_rates`` multiplies the learning rate of
    layers by regular expression. ``max_grad_norm`` 0 is off.
    No ``betas``, and ``eps`` 0, take the optimizer's own.
    """

    NAMES: ClassVar[tuple] = ("adamw", "adamw8bit", "adafactor", "prodigy", "lion", "schedulefree")
    SCHEDULES: ClassVar[tuple] = ("constant", "linear", "cosine", "cosine with restarts", "polynomial", "rex")

    name: str = "adamw"
    betas: tuple[float, ...] = ()
    eps: float = 0.0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    schedule: str = "constant"
    warmup: float = 0.0
    end: float = 0.0
    cycles: int = 1
    power: float = 2.0
    block_rates: tuple[tuple[str, float], ...] = ()

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from choices(self, name=self.NAMES, schedule=self.SCHEDULES)
        yield from ranges(self, eps=(0, 1), weight_decay=(0, 10), max_grad_norm=(0, INF),
                           warmup=(0, INF), end=(0, 1), cycles=(1, 1000), power=(0.1, 10))  # fmt: skip
        if len(self.betas) not in (0, 2) or not all(0 <= beta < 1 for beta in self.betas):
            yield f"The betas are {self.betas}; two are needed (like 0.9, 0.99), each at least 0 and below 1."
        for setting, unread in (("betas", ("adafactor",)), ("eps", ("adafactor", "lion"))):
            if self.name in unread and getattr(self, setting):
                yield f"{setting} does nothing for {self.name}; leave it at its default or choose another optimizer."
        if self.name == "schedulefree" and self.schedule != "constant":
            yield f"The schedule is {self.schedule!r}, but schedule-free AdamW has none; set it to 'constant'."
        if any(rate < 0 for _, rate in self.block_rates):
            yield "A block's learning rate factor is below 0; 0 keeps its adapters as they are."


@dataclass(frozen=True)
class EmaConfig(Section):
    """A running mean of the adapters' weights. ``decay`` 0 is off; before step ``warmup`` it just follows them.

    ``export`` and ``preview`` choose the mean over the last weights for the LoRA file and for what is measured.
    """

    decay: float = 0.0
    warmup: int = 0
    export: bool = True
    preview: bool = True

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from ranges(self, decay=(0, 0.999999), warmup=(0, 1_000_000))


@dataclass(frozen=True)
class GuardConfig(Section):
    """``bad_losses`` in a row stop a run. ``divergence`` times the best mean loss is told, or stops; 0 is off."""

    bad_losses: int = 5
    divergence: float = 3.0
    stop_on_divergence: bool = False

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from ranges(self, bad_losses=(1, 1_000_000), divergence=(0, 1e6))


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """When a run's state is saved: every n optimizer steps, minutes or epochs, 0 for never; the end is always saved.

    The last ``keep`` stay, 0 saves none at all, and with ``keep_best`` the one of the lowest validation loss beside.
    ``patience`` validations in a row without a lower loss end the run, which then gives the best; 0 is off.
    """

    every_steps: int = 0
    every_minutes: float = 10.0
    every_epochs: int = 0
    keep: int = 2
    keep_best: bool = True
    patience: int = 0

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from ranges(self, every_steps=(0, INF), every_minutes=(0, INF), every_epochs=(0, INF), keep=(0, 10_000),
                          patience=(0, INF))  # fmt: skip
        if self.patience and not (self.keep and self.keep_best):
            yield "patience gives the best checkpoint, but none is kept; set keep to 1 or more and keep_best on."


@dataclass(frozen=True)
class AdapterConfig(Section):
    """What kind of adapter, on which of the chosen layers, and from which LoRA it starts.

    ``rslora`` scales by alpha / sqrt(rank) instead of alpha / rank. ``dropout`` is of the adapter's input.
    ``lora_plus`` is how many times faster B learns than A; 1 is off. ``compute`` is the adapter's own arithmetic: the
    model's or fp32. ``lokr_factor`` -1 splits as evenly as can be; ``lokr_decompose_both`` makes both factors low-rank.
    ``include``, ``exclude``: glob patterns on layer names, with commas between. ``double_blocks``, ``single_blocks``:
    block numbers such as ``0-3, 7``. ``ranks``: ``pattern = rank`` or ``pattern = rank : alpha``, with commas between;
    the last that fits a layer holds. Empty means no restriction. ``start_from`` is the path of a LoRA file.
    """

    KINDS: ClassVar[tuple] = ("lora", "lokr", "loha")
    COMPUTE: ClassVar[tuple] = ("model", "fp32")

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
    start_from: str = ""

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from choices(self, kind=self.KINDS, compute=self.COMPUTE)
        yield from ranges(self, dropout=(0, 0.99), lora_plus=(1, 1000))
        if self.lokr_factor != -1 and self.lokr_factor < 2:
            yield f"The lokr factor is {self.lokr_factor}; it must be -1 or at least 2."
        yield from self._foreign("lora", dora=False, rslora=False, lora_plus=1)
        yield from self._foreign("lokr", lokr_factor=-1, lokr_decompose_both=False)

    def _foreign(self, kind: str, **defaults: object) -> Iterator[str]:
        """Options of one kind that were set for another: they would do nothing."""
        for name, default in defaults.items():
            if self.kind != kind and getattr(self, name) != default:
                yield f"{name} does nothing for {self.kind}; reset it to {default} or choose the kind {kind}."


@dataclass(frozen=True)
class SaveConfig(Section):
    """How the LoRA is written. ``plain_rank`` above 0 turns other kinds of adapters into plain LoRA of that rank.

    ``certificate``: load the file back as ComfyUI would and compare what it adds to each layer with the trained
    adapter.
    """

    FORMATS: ClassVar[tuple] = ("comfyui", "diffusers", "kohya", "peft")
    PRECISIONS: ClassVar[tuple] = ("bf16", "fp16", "fp32")

    format: str = "comfyui"
    precision: str = "bf16"
    plain_rank: int = 0
    certificate: bool = True

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from choices(self, format=self.FORMATS, precision=self.PRECISIONS)
        yield from ranges(self, plain_rank=(0, 4096))
