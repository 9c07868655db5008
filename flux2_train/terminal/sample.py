"""``sample``: a picture from a prompt, with LoRA files and reference images."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from ..settings.previews import PreviewSettings
from .options import add_flags, add_loras, add_model, command, files_of, find_file, loras_of, start

DESCRIPTION = """\
Paint a prompt as FLUX.2 Sampler does, and write PNG files that hold all of these settings in their metadata.

  python -m flux2_train sample "zbot on a beach" --flavour klein-4b --lora zbot.safetensors --seed 7
  python -m flux2_train sample "make it night" --reference day.png --lora a.safetensors strength=0.8 include='single*'
"""


def add(commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "sample", run, "paint a prompt", description=DESCRIPTION)
    parser.add_argument("prompt", help="what to paint; include the trigger word")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("sample.png"), help="the PNG file (default: %(default)s)"
    )
    parser.add_argument("--size", type=_size, default=None, metavar="WxH", help="pixels (default: the flavour's own)")
    add_flags(parser, PreviewSettings, "negative", "steps", "guidance", "sampler")
    parser.add_argument("--seed", type=int, default=0, help="the starting noise (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="pictures, each from different noise")
    parser.add_argument(
        "--reference", action="append", type=Path, default=[], metavar="IMAGE", help="an image to edit; repeatable"
    )
    parser.add_argument(
        "--keep-reference-size", action="store_true", help="do not scale references down to a megapixel"
    )
    add_loras(parser, ("strength", "mode", "include", "exclude"))
    add_model(parser)


def run(arguments: argparse.Namespace) -> None:
    """Sample, and print the paths of the pictures."""
    settings, loras = files_of(arguments), loras_of(arguments)
    start(arguments)
    import torch

    from ..flavours import flavour
    from ..host.sampling import sample as sampling
    from ..runs.precision import parts_of

    row = flavour(settings.flavour)
    width, height = arguments.size or (row.resolution, row.resolution)
    with torch.inference_mode():
        references = [_picture(path) for path in arguments.reference]
        parts = parts_of(settings)
        model = parts.load_model()
        for file, options in loras:
            model = _applied(model, file, options)
        pictures = sampling.sample(
            model, parts.load_clip(), parts.load_vae(), arguments.prompt,
            negative=arguments.negative, steps=arguments.steps, guidance=arguments.guidance,
            sampler=arguments.sampler, width=width, height=height, seed=arguments.seed, batch=arguments.batch,
            references=references, resize_references=not arguments.keep_reference_size,
        )  # fmt: skip
    request = {
        "prompt": arguments.prompt, "negative": arguments.negative, "width": width, "height": height,
        "steps": sampling.steps_for(model, arguments.steps), "guidance": arguments.guidance,
        "sampler": arguments.sampler, "seed": arguments.seed, "references": [str(p) for p in arguments.reference],
        "loras": [{"file": file, **options} for file, options in loras], "model": asdict(parts.chosen),
        "transformer": parts.transformer.name,
    }  # fmt: skip
    for number, picture in enumerate(pictures):
        print(_save(picture, _numbered(arguments.output, number), {**request, "number_in_batch": number}))


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not cross or not width.isdigit() or not height.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 1024x768")
    return int(width), int(height)


def _applied(model, file: str, options: dict):
    from ..adapters import read
    from ..host.lora import apply as lora

    return lora.apply(model, read.load(find_file("loras", file)), **options)


def _picture(path: Path):
    from ..data.images import load_rgb, to_tensor

    return to_tensor(load_rgb(path))


def _numbered(path: Path, number: int) -> Path:
    return path if number == 0 else path.with_name(f"{path.stem}_{number + 1}{path.suffix}")


def _save(picture, path: Path, request: dict) -> Path:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("flux2_train", json.dumps(request))
    path.parent.mkdir(parents=True, exist_ok=True)
    array = (picture.clamp(0, 1) * 255).round().byte().cpu().numpy()
    Image.fromarray(array).save(path, "PNG", pnginfo=info)
    return path
