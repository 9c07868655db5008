"""python -m bench.nano train | score | learn | slide | concept: train nano, measure it, teach it, write a data set."""

import argparse
from pathlib import Path

import torch


def main() -> None:
    """Parse the command line and run one job."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.job == "train":
        from .train import train

        train(options.steps, options.seed, weights=options.weights)
    elif options.job == "score":
        from .score import score

        score(options.prompts, options.short)
    elif options.job == "learn":
        from .learn import learn

        learn(options.names, options.seeds, options.probes, options.short, options.set)
    elif options.job == "slide":
        from .slide import slide

        slide(options.seeds, options.probes, options.steps, options.short)
    else:
        from .concepts import write_dataset

        write_dataset(options.name, options.folder, options.count)


def parser() -> argparse.ArgumentParser:
    """The command line; defaults live with the code that they belong to."""
    from .concepts import CONCEPTS
    from .train import STEPS

    root = argparse.ArgumentParser(prog="python -m bench.nano")
    root.add_argument("--threads", type=int, default=2)
    jobs = root.add_subparsers(dest="job", required=True)
    train = jobs.add_parser("train", help="fit the autoencoder, then train, or go on training")
    train.add_argument("--steps", type=int, default=STEPS, help="length of the whole run")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--weights", type=Path, help="start from these weights, where there is no checkpoint")
    score = jobs.add_parser("score", help="print every figure")
    score.add_argument("--prompts", type=int, default=200)
    score.add_argument("--short", action="store_true", help="sample the padding: four times faster, nearly the same")
    learn = jobs.add_parser("learn", help="train a LoRA per concept and seed, and score it")
    learn.add_argument("--names", nargs="+", choices=CONCEPTS, default=list(CONCEPTS))
    learn.add_argument("--seeds", type=int, default=3)
    learn.add_argument("--probes", type=int, default=20)
    learn.add_argument("--short", action="store_true", help="sample the padding: four times faster, nearly the same")
    learn.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="a setting in place of the demo's, as for train: training.routing.selection_ratio=0.5; repeatable",
    )  # fmt: skip
    slide = jobs.add_parser("slide", help="train a size slider from pairs, and measure sizes over its strength")
    slide.add_argument("--seeds", type=int, default=3)
    slide.add_argument("--probes", type=int, default=10)
    slide.add_argument("--steps", type=int, default=100)
    slide.add_argument("--short", action="store_true", help="sample the padding: four times faster, nearly the same")
    concept = jobs.add_parser("concept", help="write a concept's dataset")
    concept.add_argument("name", choices=CONCEPTS)
    concept.add_argument("folder", type=Path)
    concept.add_argument("--count", type=int, default=16)
    return root


if __name__ == "__main__":
    main()
