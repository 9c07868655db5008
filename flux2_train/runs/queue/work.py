"""Works through a queue: one job after the other; the failure of one does not stop the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...errors import Paused, UserError
from ...events import Checkpointed, Event, Resumed
from ...settings import job
from .folder import DONE, FAILED, PAUSED, STOPPED, WAITING, Claim, Queue

BEAT = 20.0  # seconds between two signs of life
Train = Callable[[job.Job, Claim], None]


def work(queue: Queue, train: Train, say: Callable[[str], None]) -> tuple[int, int]:
    """Train every waiting job, also those that are added meanwhile. Returns how many were done and how many failed.

    A job that somebody pauses is neither. Ctrl-C ends the work; the job in progress waits again and goes on from its
    last checkpoint.
    """
    done = failed = 0
    while claim := queue.claim():
        say(f"{claim.entry.title}: begins")
        try:
            train_claimed(claim, train)
            done += 1
        except Paused as paused:
            say(f"{claim.entry.title}: {_said_of(paused)}")
        except Exception as error:
            failed += 1
            say(f"{claim.entry.title}: failed: {said(error)}")
    return done, failed


def train_claimed(claim: Claim, train: Train) -> None:
    """Train a claimed job, and put its file where its end belongs. Raises what ``train`` raises."""
    try:
        with signs_of_life(claim):
            train(job.read(claim.entry.values()["job"]), claim)
    except Paused as paused:
        claim.end(PAUSED if paused.saved else STOPPED, _said_of(paused))
        raise
    except Exception as error:
        claim.end(FAILED, said(error))
        raise
    except BaseException:  # Ctrl-C, or ComfyUI's Cancel
        claim.end(WAITING)
        raise
    claim.end(DONE)


def _said_of(paused: Paused) -> str:
    goes_on = (
        "once the job waits again it goes on from there" if paused.saved else "its checkpoint could not be written"
    )
    return f"paused after step {paused.step}; {goes_on}"


def follow(claim: Claim, event: Event) -> None:
    """Keep in mind which run goes on with the job. Raises as ``require_mine``."""
    require_mine(claim)
    if isinstance(event, Checkpointed | Resumed):
        claim.run = event.path.parents[1].name


def require_mine(claim: Claim) -> None:
    """Raise UserError if another worker has taken the job for abandoned, after this one was silent for too long."""
    if claim.lost:
        raise UserError(f"The job {claim.entry.title} was given to another worker while this one did not answer.")


@contextmanager
def signs_of_life(claim: Claim) -> Iterator[None]:
    """A thread touches the claim's file every BEAT seconds inside the block."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            claim.beat()

    thread = threading.Thread(target=beat, name="flux2_train queue", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def said(error: BaseException) -> str:
    """Why a job has failed, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
