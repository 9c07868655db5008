"""Brings a run back that has gone on in a pack: its last checkpoint becomes the newest one of the run at home."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...bounded import from_json, read_text, reason
from ...errors import UserError
from ...names import shown
from ...settings.job import MAX_BYTES
from .. import resume
from ..checkpoints import Snapshot
from ..folder import STOPPED, RunFolder
from . import contents

OF_HOME = ("model", "dataset", "held_out", "previews", "output")  # sections of a job that name places


def bring_back(root: Path, runs: Path) -> RunFolder:
    """Put the last checkpoint of the pack at ``root`` into the run of its name in ``runs``.

    Raises UserError if there is no such run, if it is of other pictures, if it is being trained, or if it has a
    checkpoint of a later step.
    """
    packed = contents.read(root)
    run = RunFolder(runs / packed.contents.name)
    if not run.job.is_file():
        raise UserError(
            f"There is no run {run.name} in {runs} that could go on; in the pack itself it does: "
            f"python -m flux2_train resume {packed.run.path}"
        )
    theirs, ours = resume.newest(packed.run), resume.newest(run)
    if theirs is None:
        raise UserError(f"The pack {shown(str(root), 300)} has no checkpoint that can be read; it has not gone on.")
    _require_next(run, theirs, ours)
    try:
        with run.held():
            _take(run, theirs)
    except OSError as error:
        raise UserError(f"The checkpoint cannot be written into {run.path} ({reason(error)}).") from error
    return run


def _require_next(run: RunFolder, theirs: resume.Resumption, ours: resume.Resumption | None) -> None:
    """Raise UserError unless the pack's checkpoint goes on where the run's ends."""
    if ours is None:
        return
    step, own = theirs.checkpoint.about.step, ours.checkpoint.about.step
    if step <= own:
        raise UserError(
            f"The run {run.name} has a checkpoint of step {own}, and the pack's is of step {step}: there is nothing to "
            "bring back."
        )
    if theirs.checkpoint.about.dataset != ours.checkpoint.about.dataset or theirs.state["seed"] != ours.state["seed"]:
        raise UserError(f"The pack holds another run of the name {run.name}: its pictures or its seed differ.")


def _take(run: RunFolder, theirs: resume.Resumption) -> None:
    home = from_json(read_text(run.job, MAX_BYTES, " as a job"))
    about = theirs.checkpoint.about
    job = {**about.job, **{name: home[name] for name in OF_HOME if name in home}}
    job["training"]["adapter"]["start_from"] = home["training"]["adapter"]["start_from"]
    Snapshot.of(replace(about, job=job), theirs.state).write(run.checkpoints)
    run.note(status=STOPPED, step=about.step, total=about.total, why="")
