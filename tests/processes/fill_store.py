"""A process that fills a store with the pictures of a folder, for tests that kill it or run two at once.

Arguments: the folder and the store. Prints "ready", a line per entry, and at last how many were made.
"""

import sys
from pathlib import Path

import torch

from flux2_train.data.cache import cache_latents
from flux2_train.data.folder import read_folder
from flux2_train.data.index import Index
from flux2_train.data.store import Store
from flux2_train.settings.dataset_folder import DatasetSettings


class Means:
    """As good as a VAE for a store: 16 x 16 means, and quick."""

    identity = "means"

    def __call__(self, images):
        means = torch.nn.functional.avg_pool2d(images.movedim(-1, 1), 16)
        return means.repeat_interleave(43, 1)[:, :128].contiguous() + 1e-3  # not representable in bf16


def fill(folder: Path, place: Path, report=lambda done, total: None):
    """(cache, what was made)"""
    dataset = read_folder(DatasetSettings(folder, resolution=256), Index(place))
    return cache_latents(dataset, Means(), Store(place), report=report)


if __name__ == "__main__":
    print("ready", flush=True)
    made = fill(Path(sys.argv[1]), Path(sys.argv[2]), lambda done, total: print(f"{done} of {total}", flush=True))[1]
    print(made.encoded, flush=True)
