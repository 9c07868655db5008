"""python -m bench.nano.world train | decoder | score | sheet | install | concept: nano on the world."""

import argparse
from pathlib import Path

import torch


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run one job."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.job == "train":
        from .train import train

        train(options.steps, options.seed, options.work, options.weights)
    elif options.job == "decoder":
        from .decoder import train_decoder
        from .score import checkpointed

        train_decoder(options.steps, options.work, checkpointed(options.work) if options.sampled else None)
    elif options.job == "score":
        from .score import score

        score(options.work, options.prompts, steps=options.steps)
    elif options.job == "sheet":
        from .score import sheet

        sheet(options.work, options.out, options.count, steps=options.steps)
    elif options.job == "install":
        from .install import install

        install(options.work, options.folder)
    else:
        from .concepts import write_dataset

        write_dataset(options.name, options.folder, options.count)


def parser() -> argparse.ArgumentParser:
    """The command line; defaults live with the code that they belong to."""
    from flux2_train.nano import WEIGHTS

    from .concepts import CONCEPTS
    from .train import STEPS, WORK

    root = argparse.ArgumentParser(prog="python -m bench.nano.world")
    root.add_argument("--threads", type=int, default=2)
    root.add_argument("--work", type=Path, default=WORK, help="folder of checkpoint, log and autoencoder")
    jobs = root.add_subparsers(dest="job", required=True)
    train = jobs.add_parser("train", help="train, or go on training")
    train.add_argument("--steps", type=int, default=STEPS, help="length of the whole run")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--weights", type=Path, help="begin a new run with the weights in this file")
    decoder = jobs.add_parser("decoder", help="train the decoder's convolutions on latents with errors")
    decoder.add_argument("--steps", type=int, default=1500)
    decoder.add_argument("--sampled", action="store_true", help="with errors that the transformer in WORK makes, too")
    score = jobs.add_parser("score", help="print every figure of what WORK holds")
    score.add_argument("--prompts", type=int, default=200)
    score.add_argument("--steps", type=int, default=20, help="Euler steps of a picture")
    sheet = jobs.add_parser("sheet", help="a picture of what it paints, above the exact renders of the same prompts")
    sheet.add_argument("out", type=Path)
    sheet.add_argument("--count", type=int, default=6, help="pictures of each shape")
    sheet.add_argument("--steps", type=int, default=20, help="Euler steps of a picture")
    install = jobs.add_parser("install", help="write the weights that the pack ships, from WORK")
    install.add_argument("folder", type=Path, nargs="?", default=WEIGHTS)
    concept = jobs.add_parser("concept", help="write a concept's dataset")
    concept.add_argument("name", choices=CONCEPTS)
    concept.add_argument("folder", type=Path)
    concept.add_argument("--count", type=int, default=16)
    return root


if __name__ == "__main__":
    main()
