"""Speed of Dataset Folder and Cache Latents. ``python -m bench.cache`` in the environment of scripts/test.

First pictures of the size people train on through a VAE: one after the other, as a plain loop would, against Cache
Latents, and a second run in which nothing has changed. Then many small pictures: the time to find and index them, to
cache them and to run again, and how much memory reading every one of them takes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def pictures(folder: Path, count: int, size: int, suffix: str) -> None:
    """Noise over a gradient, which compresses about as well as photographs do."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, size)[None, :, None] + np.linspace(0, 40, size)[:, None, None]
    folder.mkdir()
    for number in range(count):
        noise = rng.integers(0, 16, (size, size, 3))
        Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{number:06}{suffix}")
        (folder / f"{number:06}.txt").write_text(f"picture {number}")


def plain_pictures(folder: Path, count: int) -> None:
    """128x128, each of its own colour: quick to make, and no two are equal."""
    folder.mkdir()
    for number in range(count):
        image = Image.new("RGB", (128, 128), (number % 256, number // 256 % 256, 0))
        image.save(folder / f"{number:06}.png", compress_level=1)
        (folder / f"{number:06}.txt").write_text(f"picture {number}")


class Clock:
    """``with clock("text")`` prints how long the block took; ``seconds`` is what the last one took."""

    def __call__(self, text: str) -> Clock:
        self.text = text
        return self

    def __enter__(self) -> Clock:
        self.started = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self.started
        print(f"{self.text}: {self.seconds:.2f} s", flush=True)


def throughput(base: Path, count: int, size: int) -> None:
    """Images per second through nano's VAE, in a loop and through Cache Latents."""
    import torch

    from flux2_train.data.cache import cache_latents
    from flux2_train.data.folder import read_folder
    from flux2_train.data.images import fit, load_rgb
    from flux2_train.data.index import Index
    from flux2_train.data.request import Request
    from flux2_train.data.store import Store
    from flux2_train.flavours import FLAVOURS
    from flux2_train.host import encode, files, load

    pictures(base / "large", count, size, ".jpg")
    row, clock = FLAVOURS["nano"], Clock()
    with torch.inference_mode():
        vae = load.load_vae(files.locate(row.vaes), row)
        dataset = read_folder(Request(base / "large", size // 2), Index(base / "store"))
        encoder = encode.ImageEncoder(vae)
        with clock(f"{count} images of {size}x{size}, one after the other") as plain:
            for item in dataset.items:
                encode.encode_image(vae, fit(load_rgb(item.path), item.size))
        loop = plain.seconds
        with clock("the same through Cache Latents"):
            cache_latents(dataset, encoder, Store(base / "store"), batch=4)
        print(f"{count / loop:.1f} and {count / clock.seconds:.1f} images per second, ratio {loop / clock.seconds:.2f}")
        with clock("again, nothing changed"):
            again = read_folder(Request(base / "large", size // 2), Index(base / "store"))
            _, made = cache_latents(again, encoder, Store(base / "store"), batch=4)
        print(f"{made}; {loop / clock.seconds:.1f} times as fast as encoding")


def many(base: Path, count: int) -> None:
    """Time and memory with a large data set."""
    import torch

    from flux2_train.data.cache import EmbedCache, cache_latents
    from flux2_train.data.folder import read_folder
    from flux2_train.data.index import Index
    from flux2_train.data.order import epoch_batches
    from flux2_train.data.request import Request
    from flux2_train.data.samples import samples
    from flux2_train.data.store import Store

    class Means:
        identity = "means"

        def __call__(self, images):
            return torch.nn.functional.avg_pool2d(images.movedim(-1, 1), 16).repeat(1, 43, 1, 1)[:, :128] + 1e-3

    plain_pictures(base / "many", count)
    request, clock, process = Request(base / "many", 128), Clock(), psutil.Process()
    time.sleep(2.1)  # files that have just been written are not trusted yet
    with clock(f"{count} images: found, hashed, checked"):
        dataset = read_folder(request, Index(base / "index"))
    with clock("cached"):
        cache_latents(dataset, Means(), Store(base / "index"))
    with clock("again, nothing changed: data set"):
        dataset = read_folder(request, Index(base / "index"))
    with clock("again, nothing changed: cache"):
        latents, made = cache_latents(dataset, Means(), Store(base / "index"))
    print(made)
    blank = torch.zeros(1, 1, 1)
    data = samples(EmbedCache(dataset, dict.fromkeys(dataset.texts(), blank)), latents)
    with clock("an epoch's order"):
        epoch_batches(data, 4, 0, 0)
    before = process.memory_info().rss
    with clock("every latent read once"):
        for sample in data:
            sample.latent.sum()
    size = sum(path.stat().st_size for path in Store(base / "index").entries())
    print(f"resident memory {before / 1e6:.0f} MB before and {process.memory_info().rss / 1e6:.0f} MB after reading "
          f"{size / 1e6:.0f} MB of latents")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cache", description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--items", type=int, default=20_000)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from flux2_train.host.bootstrap import import_comfyui

    import_comfyui()
    with tempfile.TemporaryDirectory() as base:
        throughput(Path(base), options.images, options.size)
        many(Path(base), options.items)


if __name__ == "__main__":
    main()
