"""Speed of Dataset Folder and Cache Latents. ``python -m bench.cache`` in the environment of scripts/test.

First large photograph-like JPEGs through a VAE: a plain loop (open, resize, encode, the next) against Cache Latents,
which reads and resizes the next ones meanwhile, in turn and several times; then again with nothing changed. Two VAEs:
FLUX.2's own architecture with random weights, which costs what it costs, and nano's, which costs next to nothing.
Then many small pictures: the time to find and index them, to cache them and to run again, and how much memory reading
every one of them takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
FLUX2 = {
    "double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0, "batch_norm_latent": True,
}  # fmt: skip


def photographs(folder: Path, count: int, size: int) -> None:
    """3:2 JPEGs, ``size`` pixels long, of noise over a gradient: they compress about as well as photographs do."""
    rng = np.random.default_rng(0)
    height = size * 2 // 3
    ramp = np.linspace(0, 200, size)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    folder.mkdir()
    for number in range(count):
        noise = rng.integers(0, 16, (height, size, 3))
        Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{number:06}.jpg", quality=92)
        (folder / f"{number:06}.txt").write_text(f"picture {number}")


def plain_pictures(folder: Path, count: int) -> None:
    """128x128, each of its own colour: quick to make, and no two are equal."""
    folder.mkdir()
    for number in range(count):
        image = Image.new("RGB", (128, 128), (number % 256, number // 256 % 256, 0))
        image.save(folder / f"{number:06}.png", compress_level=1)
        (folder / f"{number:06}.txt").write_text(f"picture {number}")


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def flux2_vae():
    """FLUX.2's VAE as ComfyUI builds it from a file, with random weights."""
    import comfy.sd
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL

    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(value.shape, generator=generator) * 0.02 if value.ndim > 1 else torch.ones_like(value)
        for name, value in AutoencoderKL(embed_dim=32, ddconfig=FLUX2).state_dict().items()
    }
    vae = comfy.sd.VAE(sd=state, dtype=torch.float32)
    vae.throw_exception_if_invalid()
    return vae


def nano_vae():
    """nano's VAE."""
    from flux2_train.flavours import FLAVOURS
    from flux2_train.host.loading import files, load

    row = FLAVOURS["nano"]
    return load.load_vae(files.locate(row.vaes), row)


VAES = {"flux2": flux2_vae, "nano": nano_vae}


def throughput(folder: Path, base: Path, name: str, resolution: int, repeats: int) -> dict:
    """Images per second through a VAE in a loop and through Cache Latents, in turn; medians."""
    from bench.encoding import encode_image
    from flux2_train.data.cache import cache_latents
    from flux2_train.data.folder import read_folder
    from flux2_train.data.images import load_rgb, to_tensor
    from flux2_train.data.index import Index
    from flux2_train.data.store import Store
    from flux2_train.host.encoding import encode
    from flux2_train.settings.dataset_folder import DatasetSettings

    vae, request = VAES[name](), DatasetSettings(folder, resolution=resolution)
    dataset, encoder = read_folder(request, Index(base / "index")), encode.ImageEncoder(vae)

    def fitted(item):
        return to_tensor(ImageOps.fit(load_rgb(item.path), item.size, Image.Resampling.LANCZOS))

    pictures = [fitted(item) for item in dataset.items[:2]]
    encode_image(vae, pictures[0])  # so that the first measured one is not the first of all

    def loop():
        for item in dataset.items:
            encode_image(vae, fitted(item))

    def cached(place: Path):
        cache_latents(read_folder(request, Index(base / "index")), encoder, Store(place))

    times: dict[str, list[float]] = {"loop": [], "cache": [], "again": []}
    for number in range(repeats):
        place = base / f"{name}-{number}"
        times["loop"].append(seconds(loop))
        times["cache"].append(seconds(lambda place=place: cached(place)))
        times["again"].append(seconds(lambda place=place: cached(place)))
    count, median = len(dataset.items), {part: statistics.median(taken) for part, taken in times.items()}
    encoding = statistics.median(seconds(lambda: encode_image(vae, pictures[1])) for _ in range(3))
    found = {
        "images": count,
        "size": list(dataset.items[0].size),
        "encode_share": encoding * count / median["loop"],
        "images_per_second": {part: count / median[part] for part in ("loop", "cache")},
        "ratio": statistics.median(a / b for a, b in zip(times["loop"], times["cache"], strict=True)),
        "again_seconds": median["again"],
        "seconds": times,
    }
    print(f"{name}: {count} images to {dataset.items[0].size}, encoding is {found['encode_share']:.0%} of the loop; "
          f"loop {count / median['loop']:.2f} and Cache Latents {count / median['cache']:.2f} images per second, "
          f"ratio {found['ratio']:.2f}; again with nothing changed {median['again']:.3f} s, "
          f"{median['loop'] / median['again']:.0f} times as fast", flush=True)  # fmt: skip
    return found


def many(base: Path, count: int) -> dict:
    """Time and memory with a large data set."""
    import torch

    from flux2_train.data.cache import EmbedCache, cache_latents
    from flux2_train.data.folder import read_folder
    from flux2_train.data.index import Index
    from flux2_train.data.order import epoch_batches
    from flux2_train.data.samples import samples
    from flux2_train.data.store import Store
    from flux2_train.settings.dataset_folder import DatasetSettings

    class Means:
        identity = "means"

        def __call__(self, images):
            return torch.nn.functional.avg_pool2d(images.movedim(-1, 1), 16).repeat(1, 43, 1, 1)[:, :128] + 1e-3

    plain_pictures(base / "many", count)
    request, process, found = DatasetSettings(base / "many", resolution=128), psutil.Process(), {"items": count}
    time.sleep(2.1)  # files that have just been written are not trusted yet

    def timed(text: str, work: Callable):
        started = time.perf_counter()
        result = work()
        found[text] = time.perf_counter() - started
        print(f"{count} items, {text}: {found[text]:.2f} s, resident {process.memory_info().rss >> 20} MB", flush=True)
        return result

    timed("found, hashed and checked", lambda: read_folder(request, Index(base / "store")))
    dataset = timed("the same, nothing changed", lambda: read_folder(request, Index(base / "store")))
    timed("cached", lambda: cache_latents(dataset, Means(), Store(base / "store")))
    latents, made = timed(
        "cached again, nothing changed", lambda: cache_latents(dataset, Means(), Store(base / "store"))
    )
    data = samples(EmbedCache(dataset, dict.fromkeys(dataset.texts(), torch.zeros(1, 1, 1))), latents)
    timed("order of an epoch", lambda: epoch_batches(data, 4, 0, 0))
    before = process.memory_info().rss
    timed("every latent read", lambda: [sample.latent.sum() for sample in data])
    found |= {
        "encoded_again": made.encoded,
        "resident_mb_before_reading": before >> 20,
        "resident_mb_after_reading": process.memory_info().rss >> 20,
        "latents_mb": sum(path.stat().st_size for path in Store(base / "store").entries()) >> 20,
    }
    print(f"resident {found['resident_mb_before_reading']} MB before and {found['resident_mb_after_reading']} MB after "
          f"reading {found['latents_mb']} MB of latents", flush=True)  # fmt: skip
    return found


def machine(threads: int) -> dict:
    """What was measured on."""
    return {
        "cores": os.cpu_count(),
        "torch_threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "pillow", "numpy")},
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m bench.cache", description=__doc__)
    root.add_argument("--vae", nargs="*", choices=list(VAES), default=list(VAES))
    root.add_argument("--images", type=int, default=12, help="photographs")
    root.add_argument("--size", type=int, default=6000, help="their longer side in pixels")
    root.add_argument("--resolution", type=int, default=128, help="what they are encoded at")
    root.add_argument("--repeats", type=int, default=3)
    root.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    root.add_argument("--items", type=int, default=20_000, help="small pictures; 0 leaves them out")
    root.add_argument("--output", type=Path, help="write the figures into this JSON file")
    return root


def main() -> None:
    """Measure, print, and write the result with the machine it was measured on."""
    options = parser().parse_args()
    sys.path.insert(0, str(ROOT))
    from flux2_train.host.system.bootstrap import import_comfyui

    import_comfyui()
    import torch

    torch.set_num_threads(options.threads)
    result = {"machine": machine(options.threads), "photographs": {}}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        base = Path(name)
        if options.vae:
            photographs(base / "large", options.images, options.size)
        for vae in options.vae:
            result["photographs"][vae] = throughput(base / "large", base, vae, options.resolution, options.repeats)
        if options.items:
            result["many"] = many(base, options.items)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
