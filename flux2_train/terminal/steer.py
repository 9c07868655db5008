"""``pause``, ``save``, ``preview`` and ``change RUN``: steer a run that ComfyUI or another terminal is training."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

from ..settings.steering import CHANGE, PAUSE, PREVIEW, SAVE, Change, Request
from .options import UsageError, UserError, add_run, command, run_of

WORDS = {
    PAUSE: ("save a checkpoint and end a run, to go on with it later", """\
Save a checkpoint after the step in progress and end the run. `resume RUN`, or queueing the same graph, goes on from
there to the same LoRA, bit for bit on a CPU."""),
    SAVE: ("save a checkpoint of a run now", "Save a checkpoint after the step in progress. The run goes on."),
    PREVIEW: ("paint a run's previews now", "Paint the previews after the step in progress. The run goes on."),
    CHANGE: ("change a run while it trains", """\
Change a run from the next step on. job.json lists each change with the step after which it acted, and `train` of that
job repeats it:

  python -m flux2_train change zbot --learning-rate 5e-5 --steps 2000
  python -m flux2_train change zbot --prompt "zbot on a beach" --prompt "a blue owl\""""),
}  # fmt: skip


def _add(ask: str, commands) -> None:
    help, description = WORDS[ask]
    parser = command(commands, ask, _change if ask == CHANGE else _plain, help, description=description)
    parser.set_defaults(ask=ask)
    add_run(parser)
    if ask == CHANGE:
        parser.add_argument("--learning-rate", type=float, metavar="RATE", help="before the schedule's factor")
        parser.add_argument("--steps", type=int, metavar="STEPS", help="how many steps the run has in all")
        parser.add_argument(
            "--prompt", action="append", metavar="TEXT", help="what to paint from now on; repeatable, in place of all"
        )


COMMANDS = [
    SimpleNamespace(add=lambda commands, ask=ask: _add(ask, commands)) for ask in (PAUSE, SAVE, PREVIEW, CHANGE)
]


def _plain(arguments: argparse.Namespace) -> None:
    _ask(arguments, Request(arguments.ask))


def _change(arguments: argparse.Namespace) -> None:
    prompts = tuple(arguments.prompt) if arguments.prompt else None
    try:
        request = Request(CHANGE, Change(0, arguments.learning_rate, arguments.steps, prompts))
    except UserError as error:
        raise UsageError(str(error)) from error
    _ask(arguments, request)


def _ask(arguments: argparse.Namespace, request: Request) -> None:
    from ..runs.live.asking import ask

    ask(run_of(arguments), request)
