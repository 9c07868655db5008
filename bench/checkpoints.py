"""What checkpoints cost while training: ``python -m bench.checkpoints`` in the environment of scripts/test.

One run of nano; of each pair of equally many steps, the second has a checkpoint in it, far more often than anybody
would ask for. The ratio is of all the time that passes, the thread that writes included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from bench.speed.ratios import Ratio, ratio

ROOT = Path(__file__).resolve().parents[1]


def trainer(steps: int, rank: int, resolution: int):
    """nano on the robots, encoded here."""
    import torch

    from bench.encoding import encoded
    from flux2_train.data.folder import read_folder
    from flux2_train.flavours import FLAVOURS
    from flux2_train.host.loading import files, load
    from flux2_train.runs.prepare import new_trainer
    from flux2_train.settings.dataset_folder import DatasetSettings
    from flux2_train.settings.training import TrainingSettings

    row = FLAVOURS["nano"]
    dataset = read_folder(DatasetSettings(ROOT / "datasets" / "robot", resolution=resolution))
    clip = load.load_text_encoder(files.locate(row.text_encoders), row)
    vae = load.load_vae(files.locate(row.vaes), row)
    config = TrainingSettings(steps=steps, rank=rank, validation_items=0, checkpointing=False)
    model = load.load_transformer(files.locate(row.transformer_files("auto")))
    with torch.inference_mode():
        return new_trainer(model, *encoded(dataset, clip, vae), config)


def blocks(trained, checkpoint_writer, steps: int) -> Iterator[float]:
    """Seconds of every ``steps`` steps; in every second block of them, a checkpoint is due at its first."""
    from flux2_train.events import Completed

    started = time.perf_counter()
    with closing(trained.run()) as run:
        for event in run:
            if not isinstance(event, Completed):
                continue
            block, place = divmod(event.step - 1, steps)
            if block % 2:
                checkpoint_writer.waiting = place == 0
                list(checkpoint_writer.after(event.step))
            if place == steps - 1:
                yield time.perf_counter() - started
                started = time.perf_counter()


def measure(pairs: int, steps: int, rank: int, resolution: int) -> tuple[Ratio, int]:
    """(how much longer with checkpoints, bytes of one). One more pair comes first and does not count."""
    import torch

    from flux2_train.runs.checkpoint_writer import CheckpointWriter
    from flux2_train.runs.checkpoints import About, Snapshot
    from flux2_train.settings.saving import CheckpointSettings

    trained = trainer(2 * steps * (pairs + 1), rank, resolution)

    def take() -> Snapshot:
        return Snapshot.of(About(trained.step, trained.total, {}, "", 1), trained.state_dict())

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        checkpoint_writer = CheckpointWriter(Path(folder), CheckpointSettings(every_minutes=0), 1, take)
        seconds = list(blocks(trained, checkpoint_writer, steps))[2:]
        checkpoint_writer.close()
        (size, *_) = [path.stat().st_size for path in checkpoint_writer.written]
    return ratio(seconds[1::2], seconds[::2]), size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="per checkpoint")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--resolution", type=int, default=128)
    asked = parser.parse_args()
    from flux2_train.host.system.bootstrap import import_comfyui

    import_comfyui()
    found, size = measure(asked.pairs, asked.steps, asked.rank, asked.resolution)
    print(f"checkpoints of {size / 1e6:.1f} MB every {asked.steps} steps: {found} times as long as without")


if __name__ == "__main__":
    main()
