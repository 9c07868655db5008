"""python -m bench.nano.world train | sheet: train nano on the world, look at what it paints."""

import argparse
from pathlib import Path

import torch


def main() -> None:
    """Parse the command line and run one job."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.job == "train":
        from .train import train

        train(options.steps, options.seed, options.work)
    if options.job == "decoder":
        from .decoder import train_decoder
        from .score import checkpointed

        train_decoder(options.steps, options.work, checkpointed(options.work) if options.sampled else None)


def parser() -> argparse.ArgumentParser:
    """The command line; defaults live with the code that they belong to."""
    from .train import STEPS, WORK

    root = argparse.ArgumentParser(prog="python -m bench.nano.world")
    root.add_argument("--threads", type=int, default=2)
    root.add_argument("--work", type=Path, default=WORK, help="folder of checkpoint, log and autoencoder")
    jobs = root.add_subparsers(dest="job", required=True)
    train = jobs.add_parser("train", help="train, or go on training")
    train.add_argument("--steps", type=int, default=STEPS, help="length of the whole run")
    train.add_argument("--seed", type=int, default=0)
    decoder = jobs.add_parser("decoder", help="train the decoder's convolutions on latents with errors")
    decoder.add_argument("--steps", type=int, default=1500)
    decoder.add_argument("--sampled", action="store_true", help="with errors that the transformer in WORK makes, too")
    return root


if __name__ == "__main__":
    main()
