"""``doctor``: what is here, what of it works, what will be used; the text to paste into an issue."""

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
    made = command(commands, "doctor", run, "print what works here and what will be used", description=DESCRIPTION)
    made.add_argument(
        "--measure", action="store_true", help="measure this card's rates now if they are not kept yet (a few seconds)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the report."""
    from ..host.system.facts import scrubbed

    for line in report(arguments):
        print(scrubbed(line))


def report(arguments: argparse.Namespace) -> Iterator[str]:
    """The report line by line. Where ComfyUI does not start, what is known without it."""
    from ..host.system import facts

    yield from _versions(facts.versions())
    here = facts.system()
    yield f"computer     {here['system']}, {here['processor']}, {here['cores']} cores"
    yield f"memory       {here['memory'] / GB:.1f} GB, {here['memory_free'] / GB:.1f} GB free"
    problems = [f"not installed: {', '.join(missing)}"] if (missing := facts.missing_packages()) else []
    try:
        start(arguments)
        found = facts.card()
        yield from _card(found)
        yield from _uses(found, arguments.measure)
        problems += _problems(found)
    except Exception as error:  # whatever a driver, torch or ComfyUI may raise: it is what the issue is about
        problems.append(f"ComfyUI does not start: {type(error).__name__}: {error}")
    yield "problems     none" if not problems else "problems"
    yield from (f"  - {problem}" for problem in problems)


def _versions(found: dict[str, str]) -> Iterator[str]:
    for name in ("flux2_train", "comfyui", "python"):
        yield f"{name:12} {found.pop(name) or 'not found'}"
    there = [f"{name} {version}" for name, version in found.items() if version]
    yield f"packages     {', '.join(there)}"
    absent = [name for name, version in found.items() if not version]
    yield f"not there    {', '.join(absent) or 'nothing'}"


def _card(found: dict) -> Iterator[str]:
    from ..host.system.starting import may_have_card

    if found["type"] == "cpu":
        driver = " (a driver's files are there)" if may_have_card() else ""
        yield f"device       no card: ComfyUI runs on the processor{driver}"
        return
    words = [found["name"], found.get("capability", ""), f"{found['memory'] / GB:.1f} GB",
             f"{found['memory_free'] / GB:.1f} GB free", found["driver"], f"CUDA {found['cuda']}" if found["cuda"]
             else f"HIP {found['hip']}" if found["hip"] else ""]  # fmt: skip
    yield f"device       {found['device']}: {', '.join(filter(None, words))}"
    if found.get("cards", 1) > 1:
        yield f"cards        {found['cards']}; ComfyUI computes on {found['device']}"
    yield f"dynamic VRAM {'on' if found['dynamic_vram'] else 'off: ' + found['why_no_dynamic_vram']}"
    if found["allocator"]:
        yield f"allocator    {'; '.join(filter(None, [found['allocator'], found['why_other_allocator']]))}"


def _uses(found: dict, measure: bool) -> Iterator[str]:
    import comfy.model_management

    from ..host.system import facts, rates

    scaled = ", with loss scaling" if found["computes_in"] == "fp16" else ""
    yield f"trains in    {found['computes_in']}{scaled}"
    streams = found["type"] == "cuda"
    yield f"streaming    {'from pinned memory, beside what is computed' if streams else 'only where it is asked for'}"
    yield f"kernels      comfy-kitchen's CUDA kernels: {facts.kernels()}"
    works = facts.formats()
    yield f"formats      {', '.join(name for name, why in works.items() if not why)}"
    for name, why in works.items():
        if why:
            yield f"  without    {name}: {why}"
    device = comfy.model_management.get_torch_device()
    kept = rates.rates(device) if measure else rates.kept(device)
    yield from _rates(kept, "processor" if found["type"] == "cpu" else "card")
    for name, lacking in facts.flavour_files().items():
        yield f"{name:12} {'no file of its ' + ', '.join(lacking) if lacking else 'all files are there'}"
    yield f"{'nano':12} comes with the pack"


def _rates(found, on: str) -> Iterator[str]:
    if found is None:
        yield "rates        not measured yet: Load FLUX.2 does it, or this command with --measure"
        return
    yield f"rates        {found.words(on)}"
    products = ", ".join(f"{name} {value / 1e12:.3g}" for name, value in found.products.items())
    if products:
        yield f"  products   {products} TFLOP/s"
    more = {"unpinned": found.bus_unpinned, "its own memory": found.memory, "disk": found.disk}
    yield "  GB/s       " + ", ".join(f"{name} {value / GB:.3g}" for name, value in more.items() if value)


def _problems(found: dict) -> list[str]:
    """What somebody may want to change, each with what to do."""
    import torch

    from ..flavours import FLAVOURS
    from ..host.system.facts import version_of
    from ..host.system.starting import may_have_card

    said = []
    if found["type"] == "cpu":
        said.append("No card: klein and dev are too slow on a processor; nano is made for it.")
        if may_have_card() and torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
            said.append(f"torch {torch.__version__} is built for processors only: install one for your card.")
    if found["computes_in"] == "fp16":
        said.append("This card has no bf16: it trains in fp16 with loss scaling.")
    if found.get("dynamic_vram") is False:
        said.append(f"Dynamic VRAM is off ({found['why_no_dynamic_vram']}): ComfyUI loads by estimates.")
    newest = version_of("transformers")
    for row in FLAVOURS.values():
        if row.transformers_limit and newest and int(newest.partition(".")[0]) > int(row.transformers_limit[0]):
            said.append(f"{row.name} needs transformers {row.transformers_limit} for its tokenizer; {newest} is here.")
    return said
