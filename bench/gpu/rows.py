"""What is measured, the most telling first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase

SLOWEST = 150.0  # seconds that a row may take before it is given up
PATIENCE = 4  # on a processor every limit is this many times as long, because other programs may use it too
REMEDIES = ["lora", "norms", "rope", "uploads", "one-wait", "unread"]  # in the order in which rows add them
SETTINGS = {
    "compiled": {"compile": "on"}, "certified": {"speed": "certified"}, "fastest": {"attention": "fastest"},
    "kept": {"recompute": "selective"}, "compiled-kept": {"compile": "on", "recompute": "selective"},
}  # fmt: skip
FORMATS = ("bf16", "fp8 (scaled)", "fp8 (e4m3)", "mxfp8", "int8", "nvfp4", "int4", "fp32")


@dataclass(frozen=True)
class Row:
    """A row by name: which of ``worker.KINDS`` measures it, with which arguments, and for how many seconds at most."""

    name: str
    kind: str
    arguments: dict = field(default_factory=dict)
    seconds: float = SLOWEST

    def request(self) -> dict:
        """As JSON for the process that measures."""
        return asdict(self)


def rows(device: str) -> list[Row]:
    """All rows of a kind of device, in the order in which they are measured. A processor gets more time for each."""
    found = [Row("rates", "rates"), *_gradients(), *_runs(), *(_steps_cpu() if device == "cpu" else _steps()),
             *_ablation(device), *_several(device), *_peers(device)]  # fmt: skip
    return [replace(row, seconds=PATIENCE * row.seconds) for row in found] if device == "cpu" else found


def chosen(every: list[Row], patterns: list[str]) -> list[Row]:
    """The rows whose name fits one of the patterns (``klein-9b*``); all of them without patterns."""
    return [row for row in every if not patterns or any(fnmatchcase(row.name, pattern) for pattern in patterns)]


def unknown(every: list[Row], patterns: list[str]) -> list[str]:
    """The patterns that no row's name fits."""
    return [pattern for pattern in patterns if not chosen(every, [pattern])]


def _word(precision: str) -> str:
    return precision.replace("fp8 (scaled)", "fp8").replace("fp8 (e4m3)", "e4m3")


def _gradients() -> Iterator[Row]:
    for precision in FORMATS:
        yield Row(f"gradient-{_word(precision)}", "gradient", {"precision": precision})
    for precision in ("bf16", "fp8 (scaled)"):
        yield Row(f"gradient-{_word(precision)}-in-fp16", "gradient", {"precision": precision, "dtype": "fp16"})
        yield Row(f"gradient-{_word(precision)}-streamed", "gradient", {"precision": precision, "streamed": True})


def _runs() -> Iterator[Row]:
    yield Row("run-resident", "run", {"offload": "auto"})
    yield Row("run-streamed", "run", {"offload": "all"})


def _steps() -> Iterator[Row]:
    """Flavours with all of the card's memory and with some of it, then with the memory of other cards."""
    for flavour, precision, cards in (
        ("klein-9b", "fp8 (scaled)", (16, 8)), ("klein-9b", "bf16", (24,)), ("klein-4b", "bf16", (12, 8)),
        ("dev", "fp8 (scaled)", (24, 16)),
    ):  # fmt: skip
        for pixels in (1024, 512):
            yield _step(flavour, pixels, precision)
        for card in cards:
            yield _step(flavour, 1024, precision, card)
    for flavour, cards in (("dev", (32, 12)), ("klein-9b", (24, 12)), ("klein-4b", (0, 8))):
        for card in cards:
            yield _step(flavour, 1024, "fp8 (scaled)", card)
    for precision in ("nvfp4", "int8", "mxfp8", "int4"):
        yield _step("klein-9b", 1024, precision)
    yield _step("dev", 1024, "bf16", seconds=300.0)


def _steps_cpu() -> Iterator[Row]:
    for precision in ("bf16", "fp8 (scaled)"):
        yield _step("nano", 256, precision)
    yield Row("nano-256-bf16-streamed", "step", {"flavour": "nano", "pixels": 256, "precision": "bf16",
                                                 "offload": "all"})  # fmt: skip


def _step(flavour: str, pixels: int, precision: str, card: int = 0, seconds: float = SLOWEST) -> Row:
    """``card``: GiB that the plan may use, 0 for all there are."""
    name = f"{flavour}-{pixels}-{_word(precision)}{f'-{card}gb' if card else ''}"
    return Row(name, "step", {"flavour": flavour, "pixels": pixels, "precision": precision, "card": card}, seconds)


def _ablation(device: str) -> Iterator[Row]:
    """One step without what makes it faster, then with one remedy more in each row, then with one of SETTINGS each."""
    for flavour, pixels in [("nano", 256)] if device == "cpu" else [("klein-9b", 1024), ("klein-4b", 512)]:
        name, what = f"ablation-{flavour}-{pixels}", {"flavour": flavour, "pixels": pixels, "precision": "bf16"}
        for count, remedy in enumerate(("plain", *REMEDIES)):
            yield Row(f"{name}-{remedy}", "ablation", {**what, "remedies": REMEDIES[:count]})
        for word, setting in SETTINGS.items():
            yield Row(f"{name}-{word}", "ablation", {**what, "remedies": REMEDIES, **setting}, 2 * SLOWEST)


def _several(device: str) -> Iterator[Row]:
    """What needs several cards: one model over all of them, and as many processes. With one card they are absent."""
    for flavour, pixels in [("nano", 256)] if device == "cpu" else [("klein-9b", 1024), ("dev", 512)]:
        what = {"flavour": flavour, "pixels": pixels, "precision": "bf16"}
        for accumulate in (1, 4):
            name = f"cards-{flavour}-{pixels}-bf16-{'in-flight' if accumulate > 1 else 'one-by-one'}"
            yield Row(name, "cards", {**what, "accumulate": accumulate}, 2 * SLOWEST)
    flavour, pixels = ("nano", 128) if device == "cpu" else ("klein-4b", 512)
    yield Row(f"scaling-{flavour}-{pixels}-bf16", "scaling",
              {"flavour": flavour, "pixels": pixels, "precision": "bf16"}, 4 * SLOWEST)  # fmt: skip


def _peers(device: str) -> Iterator[Row]:
    for flavour, pixels in [("nano", 256)] if device == "cpu" else [("klein-4b", 1024), ("klein-9b", 1024)]:
        yield Row(f"diffusers-{flavour}-{pixels}-bf16", "diffusers", {"flavour": flavour, "pixels": pixels})
