"""What several commands share: arguments, starting ComfyUI, reading a job, and the progress bar.

Commands import what they work with when they run: the parser holds them all, and ``--help`` must not wait for torch.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..host.system.bootstrap import import_comfyui, import_folders
from ..host.system.starting import warnings
from ..runs.folder import RunFolder
from ..settings import base, job
from ..settings.model import ModelSettings


class UsageError(UserError):
    """The command line or the job file is wrong: exit code 2."""


def command(commands, name: str, run, help: str, **texts: str) -> argparse.ArgumentParser:
    """A sub-command that calls ``run``, with the options every command has."""
    parser = commands.add_parser(
        name, help=help, description=texts.pop("description", help),
        formatter_class=argparse.RawDescriptionHelpFormatter, **texts,
    )  # fmt: skip
    parser.set_defaults(run=run)
    parser.add_argument(
        "--comfyui", default="", metavar="OPTIONS",
        help="ComfyUI's own command line options as one text, such as --comfyui='--lowvram --base-directory /data'",
    )  # fmt: skip
    return parser


def add_flags(parser: argparse.ArgumentParser, kind: type, *names: str, **changes: dict[str, Any]) -> None:
    """A flag for each of these settings, or for all of a kind, with the choices, default, limits and help of the field.

    ``changes`` are further arguments of single flags, such as a ``metavar``.
    """
    for name in names or base.names(kind):
        parser.add_argument(f"--{name.replace('_', '-')}", **(_flag(kind, name) | changes.get(name, {})))


def _flag(kind: type, name: str) -> dict[str, Any]:
    """What argparse has to know of a setting. A setting that is true or false is false by default."""
    field, choices = base.info(kind, name), base.choices(kind, name)
    shown = " (default: %(default)s)" if field.default else ""
    flag: dict[str, Any] = {"default": field.default, "help": field.description.replace("%", "%%") + shown}
    if field.annotation is bool:
        return flag | {"action": "store_true"}
    if field.annotation in (int, float):
        return flag | {"type": partial(_number, kind, name), "metavar": name.upper()}
    return flag | ({"choices": choices} if choices else {})


def _number(kind: type, name: str, text: str) -> float:
    least, most = base.limits(kind, name)
    number_type = base.info(kind, name).annotation
    try:
        number = number_type(text)
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        sort = "whole number" if number_type is int else "number"
        raise argparse.ArgumentTypeError(f"{text!r} is not a {sort} from {least:g} to {most:g}")
    return number


def add_job(parser: argparse.ArgumentParser) -> None:
    """The job file, and settings that replace some of it."""
    parser.add_argument(
        "config", type=Path, metavar="CONFIG", help="a job file, such as the job.json in a run's folder (JSON or TOML)"
    )
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Settings that replace those of a job."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="a setting in place of the file's: steps=500, dataset.folder=photos, model.precision=bf16; repeatable",
    )  # fmt: skip


def add_run(parser: argparse.ArgumentParser) -> None:
    """The folder or the name of a run."""
    parser.add_argument("run_folder", metavar="RUN", help="a run's folder, or its name in ComfyUI's output/flux2_train")


def run_of(arguments: argparse.Namespace) -> RunFolder:
    """The run of the command line; a name is looked up in ComfyUI's output folder. Raises UsageError without one."""
    from ..runs.folder import RunFolder

    path = Path(arguments.run_folder)
    if not path.is_dir():
        start_folders(arguments)
        from ..host.loading.files import run_folder

        path = run_folder() / arguments.run_folder
    if not RunFolder(path).job.is_file():
        raise UsageError(f"There is no run {arguments.run_folder}: {path} holds no {RunFolder(path).job.name}.")
    return RunFolder(path)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The settings of Load FLUX.2."""
    files = {name: {"metavar": "FILE"} for name in ("transformer", "text_encoder", "vae")}
    add_flags(parser, ModelSettings, **files)


def add_loras(parser: argparse.ArgumentParser, settings: tuple[str, ...], required: bool = False) -> None:
    """LoRAs, each with its own ``settings``."""
    parser.add_argument(
        "--lora", action="append", nargs="+", default=[], required=required, metavar=("FILE", "NAME=VALUE"),
        help=f"a LoRA: a name in ComfyUI's loras folder or a path, then {', '.join(settings)}; repeatable",
    )  # fmt: skip
    parser.set_defaults(lora_settings=settings)


def loras_of(arguments: argparse.Namespace) -> list[tuple[str, dict]]:
    """(file, settings) of each LoRA on the command line. Raises UsageError for an unknown setting."""
    return [_lora(words, arguments.lora_settings) for words in arguments.lora]


def _lora(words: list[str], known: tuple[str, ...]) -> tuple[str, dict]:
    settings = {}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            raise UsageError(f"--lora {words[0]}: {word!r} is not {'=, '.join(known)}=; put --lora behind the rest.")
        settings[name] = value
    try:
        settings["strength"] = float(settings.get("strength", 1.0))
    except ValueError:
        raise UsageError(f"--lora {words[0]}: strength is {settings['strength']!r}; it must be a number.") from None
    return words[0], settings


def find_file(folder: str, file: str) -> Path:
    """The path of a file in ComfyUI's ``folder``, with or without suffix, or anywhere. Raises UserError if missing."""
    from ..host.loading.files import existing

    for name in (file, f"{file}.safetensors"):
        path = existing(folder, name) or Path(name)
        if path.is_file():
            return path
    raise UserError(f"There is no file {file}, neither in ComfyUI's {folder} folder nor at that path.")


def files_of(arguments: argparse.Namespace) -> ModelSettings:
    """The settings that ``add_model``'s flags give."""
    return ModelSettings(**{name: getattr(arguments, name) for name in base.names(ModelSettings)})


def read_job(arguments: argparse.Namespace, config: Path | None = None) -> job.Job:
    """The job of the command line, or of ``config``. Raises UsageError for a wrong file and for unknown parts in it."""
    try:
        loaded = job.load(config or arguments.config, arguments.set)
        loaded.require_known()
    except UserError as error:
        raise UsageError(str(error)) from error
    return loaded


def start(arguments: argparse.Namespace, *more: str) -> None:
    """Import ComfyUI with its own options; it never sees ours. Prints what differs from ComfyUI's server."""
    import_comfyui(*shlex.split(arguments.comfyui), *more)
    for text in warnings():
        print(f"note: {text}", file=sys.stderr)


def start_folders(arguments: argparse.Namespace) -> None:
    """Like ``start``, for a command that only needs ComfyUI's folders: much faster, because torch is not imported."""
    import_folders(*shlex.split(arguments.comfyui))


class Bar:
    """A progress bar on stderr, a new one for each part of the work. ``shown`` is true in one process alone."""

    def __init__(self, shown: bool = True):
        self.shown, self.bar, self.text = shown, None, ""

    def __call__(self, text: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done in the part called ``text``."""
        if self.bar is None or self.text != text:
            from tqdm import tqdm

            self.close()
            self.text, self.bar = text, tqdm(total=total, desc=text, disable=not self.shown, dynamic_ncols=True)
        self.bar.update(done - self.bar.n)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.shown:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


@contextmanager
def progress(shown: bool = True) -> Iterator[Bar]:
    """A Bar that is closed on every way out."""
    bar = Bar(shown)
    try:
        yield bar
    finally:
        bar.close()
