"""python -m bench.nano JOB: train nano, measure it, teach it something new. See --help."""

import argparse
from pathlib import Path

import torch


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run one job."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.run(options)


def _train(options: argparse.Namespace) -> None:
    from .train import train

    train(options.steps, options.seed, options.work, options.weights)


def _decoder(options: argparse.Namespace) -> None:
    from .decoder import train_decoder
    from .score import transformer_of

    transformer = transformer_of(options.work) if options.sampled else None
    train_decoder(options.steps, options.work, transformer, options.seed, options.rate)


def _score(options: argparse.Namespace) -> None:
    from .score import score

    score(options.weights, options.prompts, steps=options.steps)


def _sheet(options: argparse.Namespace) -> None:
    from .score import sheet

    sheet(options.weights, options.out, options.count, steps=options.steps)


def _install(options: argparse.Namespace) -> None:
    from .install import install

    install(options.work, options.folder)


def _learn(options: argparse.Namespace) -> None:
    from .learn import learn

    learn(options.names, options.seeds, options.probes, options.set)


def _slide(options: argparse.Namespace) -> None:
    from .slide import slide

    slide(options.names, options.seeds, options.probes, options.steps)


def _concept(options: argparse.Namespace) -> None:
    from .world.concepts import write_dataset

    write_dataset(options.name, options.folder, options.count)


def parser() -> argparse.ArgumentParser:
    """The command line; defaults live with the code that they belong to."""
    root = argparse.ArgumentParser(prog="python -m bench.nano")
    root.add_argument("--threads", type=int, default=2)
    jobs = root.add_subparsers(dest="job", required=True)
    _training_jobs(jobs)
    _measuring_jobs(jobs)
    return root


def _training_jobs(jobs) -> None:
    from flux2_train.nano import WEIGHTS

    from .decoder import RATE
    from .train import STEPS, WORK

    train = jobs.add_parser("train", help="fit the encoder and train the transformer, or go on training")
    train.add_argument("--steps", type=int, default=STEPS, help="length of the whole run")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--weights", type=Path, help="begin a new run with the weights in this file")
    decoder = jobs.add_parser("decoder", help="train the decoder's convolutions on latents with errors")
    decoder.add_argument("--steps", type=int, default=1500)
    decoder.add_argument("--seed", type=int, default=0)
    decoder.add_argument("--rate", type=float, default=RATE, help="a third of it to go on with what is learned")
    decoder.add_argument("--sampled", action="store_true", help="with errors that the transformer in WORK makes, too")
    install = jobs.add_parser("install", help="write the weights that the pack ships, from WORK")
    install.add_argument("folder", type=Path, nargs="?", default=WEIGHTS)
    for job, run in ((train, _train), (decoder, _decoder), (install, _install)):
        job.add_argument("--work", type=Path, default=WORK, help="folder of checkpoint, log and autoencoder")
        job.set_defaults(run=run)


def _measuring_jobs(jobs) -> None:
    from flux2_train.nano import WEIGHTS

    from .slide import SLIDERS
    from .world.concepts import CONCEPTS

    score = jobs.add_parser("score", help="print every figure")
    score.add_argument("--prompts", type=int, default=200)
    sheet = jobs.add_parser("sheet", help="save nano's pictures, each above the exact render of its prompt")
    sheet.add_argument("out", type=Path)
    sheet.add_argument("--count", type=int, default=6, help="pictures of each shape")
    for job, run in ((score, _score), (sheet, _sheet)):
        job.add_argument("--steps", type=int, default=20, help="Euler steps of a picture")
        job.add_argument(
            "--weights", type=Path, default=WEIGHTS, help="folder of what is measured: WORK, or the pack's"
        )
        job.set_defaults(run=run)
    learn = jobs.add_parser("learn", help="train a LoRA per concept and seed, and score it")
    learn.add_argument("--names", nargs="+", choices=CONCEPTS, default=list(CONCEPTS))
    learn.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="a setting in place of the demo's, as for train: training.routing.selection_ratio=0.5; repeatable",
    )  # fmt: skip
    slide = jobs.add_parser("slide", help="train sliders, of the size from pairs and of the brightness from prompts")
    slide.add_argument("--names", nargs="+", choices=SLIDERS, default=list(SLIDERS))
    slide.add_argument("--steps", type=int, default=100)
    for job, run, probes in ((learn, _learn, 20), (slide, _slide, 10)):
        job.add_argument("--seeds", type=int, default=3)
        job.add_argument("--probes", type=int, default=probes, help="prompts painted for each score")
        job.set_defaults(run=run)
    concept = jobs.add_parser("concept", help="write a concept's data set")
    concept.add_argument("name", choices=CONCEPTS)
    concept.add_argument("folder", type=Path)
    concept.add_argument("--count", type=int, default=16)
    concept.set_defaults(run=_concept)


if __name__ == "__main__":
    main()
