"""``queue``: works through the folder of waiting jobs, or adds to it, lists it and changes it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..names import counted
from ..runs.folder import RunFolder
from .options import UsageError, command, read_job, start_folders

DESCRIPTION = """\
Train the jobs that wait in the queue, one after the other, until none is left. A job that fails does not stop the rest.
Several terminals, ComfyUI's server, and other computers that share the folder may work at the same queue.

  python -m flux2_train queue                                            train all that wait
  python -m flux2_train queue add output/flux2_train/zbot/job.json --vary rank=8,16,32 --vary learning_rate=1e-4,2e-4
  python -m flux2_train queue list
  python -m flux2_train queue move "000030 rank 32" 0                    make it the next one
  python -m flux2_train queue remove "000030 rank 32"
"""


def add(commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "queue", run, "train the jobs that wait, or add some", description=DESCRIPTION)
    parser.add_argument("--queue", type=Path, metavar="FOLDER", help="another queue than ComfyUI's own")
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION")
    adding = actions.add_parser("add", help="add a job, or one for every combination of values")
    adding.add_argument("config", type=Path, metavar="CONFIG", help="a job file, such as the job.json of a run")
    adding.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of every job")
    adding.add_argument(
        "--vary", action="append", default=[], metavar="NAME=VALUE,VALUE", help="values of a setting; repeatable"
    )
    actions.add_parser("list", help="print every job: its state, its name, why it ended")
    for name, help in (
        ("remove", "remove a job"),
        ("again", "let an ended job wait again"),
        ("move", "change the order"),
    ):
        actions.add_parser(name, help=help).add_argument("name", metavar="NAME", help="as the list prints it")
    actions.choices["move"].add_argument("place", type=int, metavar="PLACE", help="0 is the next one")


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says; without an action, work through the queue."""
    if arguments.action is None:
        _work(arguments)
        return
    queue = _queue(arguments)
    if arguments.action == "add":
        _add(queue, arguments)
    elif arguments.action == "list":
        _list(queue)
    elif arguments.action == "move":
        queue.move(arguments.name, arguments.place)
    else:
        {"remove": queue.remove, "again": queue.again}[arguments.action](arguments.name)


def _queue(arguments: argparse.Namespace, started: bool = False):
    from ..runs.queue.folder import Queue

    if arguments.queue:
        return Queue(arguments.queue)
    if not started:
        start_folders(arguments)
    from ..runs.queue.place import own_queue

    return own_queue()


def _add(queue, arguments: argparse.Namespace) -> None:
    from ..runs.queue.grid import variations
    from ..settings.base import plain

    job = read_job(arguments)
    for title, each in variations(plain(job), _grid(arguments.vary)):
        print(queue.add(each, title if arguments.vary else job.training.name, _run_of(arguments.config)))


def _grid(texts: list[str]) -> dict[str, list[str]]:
    grid = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name or not values:
            raise UsageError(f"--vary {text!r} is not NAME=VALUE,VALUE, such as rank=8,16,32.")
        grid[name.strip()] = [value.strip() for value in values.split(",")]
    return grid


def _run_of(config: Path) -> str:
    folder = RunFolder(config.resolve().parent)
    return folder.name if config.resolve() == folder.job and (folder.path / "run.json").is_file() else ""


def _list(queue) -> None:
    from ..names import shown

    for entry in queue.entries():
        why = entry.why()
        print(f"{entry.state:8} {shown(entry.name, 200)}{': ' + shown(why, 500) if why else ''}")
    if queue.paused:
        print("The queue is paused: no job begins until it goes on.")


def _work(arguments: argparse.Namespace) -> None:
    from .train import launched, train_job

    with launched(arguments) as (accelerator, bar):
        from ..runs.queue.place import how_of
        from ..runs.queue.work import follow, work

        queue = _queue(arguments, started=True)
        if accelerator.num_processes > 1:
            raise UsageError("queue trains in one process; start it without accelerate launch, once for each card.")

        def train(job, claim) -> None:
            train_job(job, None, accelerator, bar, how_of(claim), lambda event: follow(claim, event))

        done, failed = work(queue, train, bar.say)
        bar.say(f"{counted(done, 'job is', 'jobs are')} done, {failed} failed")
    if failed:
        from ..errors import UserError

        jobs = counted(failed, "job has", "jobs have")
        raise UserError(f"{jobs} failed; `queue list` says why, `queue again NAME` lets one wait again.")
