"""What several commands share: arguments, starting ComfyUI, reading a job, and the progress bar.

Commands import what they work with when they run: the parser holds all of them, and ``--help`` does not wait for torch.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError
from ..flavours import DEFAULT, FLAVOURS, VARIANTS, VIA
from ..formats import AS_IN_FILE, CHOICES, PLANNED
from ..host.system.bootstrap import import_comfyui, import_folders
from ..host.system.starting import warnings
from ..runs.folder import RunFolder
from ..settings import job
from ..settings.model import ModelSettings


class UsageError(UserError):
    """The command line or the job file is wrong, rather than what it asks for impossible."""


def command(commands, name: str, run, help: str, **texts: str) -> argparse.ArgumentParser:
    """A sub-command that calls ``run``, with the options every command has."""
    made = commands.add_parser(
        name, help=help, description=texts.pop("description", help),
        formatter_class=argparse.RawDescriptionHelpFormatter, **texts,
    )  # fmt: skip
    made.set_defaults(run=run)
    made.add_argument(
        "--comfyui", default="", metavar="OPTIONS",
        help="ComfyUI's own command line options as one text, such as --comfyui='--lowvram --base-directory /data'",
    )  # fmt: skip
    return made


def add_job(made: argparse.ArgumentParser) -> None:
    """The job file and settings in its place."""
    made.add_argument(
        "config", type=Path, metavar="CONFIG", help="a job file, such as the job.json in a run's folder (JSON or TOML)"
    )
    add_settings(made)


def add_settings(made: argparse.ArgumentParser) -> None:
    """Settings in place of a job's."""
    made.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="a setting in place of the file's: steps=500, dataset.folder=photos, model.precision=bf16; repeatable",
    )  # fmt: skip


def add_run(made: argparse.ArgumentParser) -> None:
    """A run that was begun."""
    made.add_argument("run_folder", metavar="RUN", help="a run's folder, or its name in ComfyUI's output/flux2_train")


def run_of(arguments: argparse.Namespace) -> RunFolder:
    """What ``add_run`` read; ComfyUI is asked for its folder where that is needed. Raises UsageError without one."""
    from ..runs.folder import RunFolder

    named = Path(arguments.run_folder)
    if not named.is_dir():
        start_folders(arguments)
        from ..host.loading.files import run_folder

        named = run_folder() / arguments.run_folder
    if not RunFolder(named).job.is_file():
        raise UsageError(f"There is no run {arguments.run_folder}: {named} holds no {RunFolder(named).job.name}.")
    return RunFolder(named)


def add_model(made: argparse.ArgumentParser) -> None:
    """The inputs of Load FLUX.2."""
    made.add_argument("--flavour", choices=FLAVOURS, default=DEFAULT, help=f"which FLUX.2 (default: {DEFAULT})")
    made.add_argument(
        "--precision",
        choices=(PLANNED, *CHOICES),
        default=AS_IN_FILE,
        help="how the transformer's weights are stored; auto: the fastest that fits, by the planner",
    )
    made.add_argument(
        "--text-encoder-precision", choices=CHOICES, default=AS_IN_FILE, help="the text encoder's likewise"
    )
    made.add_argument("--quantize-via", choices=VIA, default="auto", help="where quantising is computed")
    made.add_argument("--keep-quantised", action="store_true", help="keep the quantised model as a file for next time")
    made.add_argument("--variant", choices=VARIANTS, default="auto", help="base or distilled, where there are both")
    for name in ("transformer", "text_encoder", "vae"):
        made.add_argument(
            f"--{name.replace('_', '-')}", default="auto", metavar="FILE",
            help="a name in ComfyUI's folder for it, or a full path (default: the flavour's official file)",
        )  # fmt: skip


def add_loras(made: argparse.ArgumentParser, settings: tuple[str, ...], required: bool = False) -> None:
    """LoRAs, each with ``settings`` of its own."""
    made.add_argument(
        "--lora", action="append", nargs="+", default=[], required=required, metavar=("FILE", "NAME=VALUE"),
        help=f"a LoRA: a name in ComfyUI's loras folder or a path, then {', '.join(settings)}; repeatable",
    )  # fmt: skip
    made.set_defaults(lora_settings=settings)


def loras_of(arguments: argparse.Namespace) -> list[tuple[str, dict]]:
    """(file, settings) of each LoRA that ``add_loras`` read. Raises UsageError for a setting there is not."""
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
    """A name in ComfyUI's model folder, its suffix may be left out, or a path. Raises UserError if nothing is there."""
    import folder_paths

    for name in (file, f"{file}.safetensors"):
        found = folder_paths.get_full_path(folder, name)
        if found:
            return Path(found)
        if Path(name).is_file():
            return Path(name)
    raise UserError(f"There is no file {file}, neither in ComfyUI's {folder} folder nor at that path.")


def files_of(arguments: argparse.Namespace) -> ModelSettings:
    """What ``add_model`` read."""
    return ModelSettings(**{name: getattr(arguments, name) for name in ModelSettings.__dataclass_fields__})


def read_job(arguments: argparse.Namespace, config: Path | None = None) -> job.Job:
    """What ``add_job`` read, or ``config``. Raises UsageError for a file that is wrong or does not hold everything."""
    try:
        read = job.load(config or arguments.config, arguments.set)
        read.require_known()
    except UserError as error:
        raise UsageError(str(error)) from error
    return read


def start(arguments: argparse.Namespace, *more: str) -> None:
    """Import ComfyUI with the options meant for it. It never sees ours. Says what its server would have otherwise."""
    import_comfyui(*shlex.split(arguments.comfyui), *more)
    for text in warnings():
        print(f"note: {text}", file=sys.stderr)


def start_folders(arguments: argparse.Namespace) -> None:
    """Like ``start`` for a command that only asks where ComfyUI's files lie: much faster, and torch stays out of it."""
    import_folders(*shlex.split(arguments.comfyui))


class Bar:
    """A progress bar on stderr, new for each part of the work; ``shown`` is false in all but one process."""

    def __init__(self, shown: bool = True):
        self.shown, self.bar, self.text = shown, None, ""

    def __call__(self, text: str, done: int, total: int) -> None:
        """``done`` of ``total`` of the part called ``text``."""
        if self.bar is None or self.text != text:
            from tqdm import tqdm

            self.close()
            self.text, self.bar = text, tqdm(total=total, desc=text, disable=not self.shown, dynamic_ncols=True)
        self.bar.update(done - self.bar.n)

    def say(self, text: str) -> None:
        """A line that stays."""
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
