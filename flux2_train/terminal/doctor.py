"""``doctor``: prints what is installed, what of it works and what training will use, to paste into an issue."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .options import command, start

DESCRIPTION = """\
Print versions, devices, what works here, what does not and why, and what training will use: paste it into an issue.
It holds no user name, no home folder and no token. Without a card it says so.

  python -m flux2_train doctor
  python -m flux2_train doctor --measure
"""
GB = 1e9


def add(commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "doctor", run, "print what works here and what will be used", description=DESCRIPTION)
    parser.add_argument(
        "--measure", action="store_true", help="measure this card's rates now if they are not kept yet (a few seconds)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the report."""
    from ..host.system.facts import scrubbed

    for line in report(arguments):
        print(scrubbed(line))


def report(arguments: argparse.Namespace) -> Iterator[str]:
    """The report, line by line. If ComfyUI does not start, it holds what is known without it."""
    from ..host.system import facts

    yield from _versions(facts.versions())
    here = facts.system()
    yield f"computer     {here['system']}, {here['processor']}, {here['cores']} cores"
    yield f"memory       {here['memory'] / GB:.1f} GB, {here['memory_free'] / GB:.1f} GB free"
    problems = [f"not installed: {', '.join(missing)}"] if (missing := facts.missing_packages()) else []
    try:
        start(arguments)
        card = facts.card()
        yield from _card(card)
        yield from _uses(card, arguments.measure)
        problems += _problems(card)
    except Exception as error:  # a driver, torch or ComfyUI may raise anything: the issue is about it
        problems.append(f"ComfyUI does not start: {type(error).__name__}: {error}")
    yield "problems     none" if not problems else "problems"
    yield from (f"  - {problem}" for problem in problems)


def _versions(versions: dict[str, str]) -> Iterator[str]:
    for name in ("flux2_train", "comfyui", "python"):
        yield f"{name:12} {versions.pop(name) or 'not found'}"
    installed = [f"{name} {version}" for name, version in versions.items() if version]
    yield f"packages     {', '.join(installed)}"
    absent = [name for name, version in versions.items() if not version]
    yield f"not there    {', '.join(absent) or 'nothing'}"


def _card(card: dict) -> Iterator[str]:
    from ..host.system.starting import may_have_card

    if card["type"] == "cpu":
        driver = " (a driver's files are there)" if may_have_card() else ""
        yield f"device       no card: ComfyUI runs on the processor{driver}"
        return
    words = [card["name"], card.get("capability", ""), f"{card['memory'] / GB:.1f} GB",
             f"{card['memory_free'] / GB:.1f} GB free", card["driver"], f"CUDA {card['cuda']}" if card["cuda"]
             else f"HIP {card['hip']}" if card["hip"] else ""]  # fmt: skip
    yield f"device       {card['device']}: {', '.join(filter(None, words))}"
    if card.get("cards", 1) > 1:
        yield f"cards        {card['cards']}; ComfyUI computes on {card['device']}"
    yield f"dynamic VRAM {'on' if card['dynamic_vram'] else 'off: ' + card['why_no_dynamic_vram']}"
    if card["allocator"]:
        yield f"allocator    {'; '.join(filter(None, [card['allocator'], card['why_other_allocator']]))}"


def _uses(card: dict, measure: bool) -> Iterator[str]:
    import comfy.model_management

    from ..host.system import facts, rates

    scaled = ", with loss scaling" if card["computes_in"] == "fp16" else ""
    yield f"trains in    {card['computes_in']}{scaled}"
    streams = card["type"] == "cuda"
    yield f"streaming    {'from pinned memory, beside what is computed' if streams else 'only where it is asked for'}"
    yield f"kernels      comfy-kitchen's CUDA kernels: {facts.kernels()}"
    works = facts.formats()
    yield f"formats      {', '.join(name for name, why in works.items() if not why)}"
    for name, why in works.items():
        if why:
            yield f"  without    {name}: {why}"
    device = comfy.model_management.get_torch_device()
    kept = rates.rates(device) if measure else rates.kept(device)
    yield from _rates(kept, "processor" if card["type"] == "cpu" else "card")
    for name, lacking in facts.flavour_files().items():
        yield f"{name:12} {'no file of its ' + ', '.join(lacking) if lacking else 'all files are there'}"
    yield f"{'nano':12} comes with the pack"


def _rates(rates, on: str) -> Iterator[str]:
    if rates is None:
        yield "rates        not measured yet: Load FLUX.2 does it, or this command with --measure"
        return
    yield f"rates        {rates.words(on)}"
    products = ", ".join(f"{name} {value / 1e12:.3g}" for name, value in rates.products.items())
    if products:
        yield f"  products   {products} TFLOP/s"
    more = {"unpinned": rates.bus_unpinned, "its own memory": rates.memory, "disk": rates.disk}
    yield "  GB/s       " + ", ".join(f"{name} {value / GB:.3g}" for name, value in more.items() if value)


def _problems(card: dict) -> list[str]:
    """What the user may want to change, each with what to do."""
    import torch

    from ..flavours import FLAVOURS
    from ..host import contract
    from ..host.encoding import tokenizers
    from ..host.system.starting import may_have_card

    sentences = []
    if card["type"] == "cpu":
        sentences.append("No card: klein and dev are too slow on a processor; nano is made for it.")
        if may_have_card() and torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
            sentences.append(f"torch {torch.__version__} is built for processors only: install one for your card.")
    if card["computes_in"] == "fp16":
        sentences.append("This card has no bf16: it trains in fp16 with loss scaling.")
    if card.get("dynamic_vram") is False:
        sentences.append(f"Dynamic VRAM is off ({card['why_no_dynamic_vram']}): ComfyUI loads by estimates.")
    return [*sentences, *filter(None, map(tokenizers.problem, FLAVOURS.values())), *contract.sentences()]
