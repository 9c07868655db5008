"""One contender in a process of its own. A line on stdin is one step; the answer on stdout is its time and its peak."""

from __future__ import annotations

import json
import os
import sys
import time

import torch

from bench import memory

from .contenders import CONTENDERS, import_libraries
from .problem import Problem


def main(name: str, problem: Problem, threads: int) -> None:
    """Answer a line for each step, as ``Meter.done`` writes it; ``{"error": sentence}`` if the contender cannot."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    torch.set_num_threads(threads)
    meter = Meter(problem.device, answers)
    meter.wait()
    try:
        import_libraries(name, problem)
        meter.begin()
        CONTENDERS[name](problem, meter.done)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        answers.write(json.dumps({"error": reason}) + "\n")


def small_add(times: int = 3000) -> float:
    """Processor seconds that one sum of two small tensors takes here and now: what a step's overhead is counted in."""
    with torch.no_grad():
        a, b = torch.ones(16), torch.ones(16)
        started = time.process_time()
        for _ in range(times):
            torch.add(a, b)
        return (time.process_time() - started) / times


class Meter:
    """Between two lines: how long, how much processor time, and the most memory the process (or the GPU) held."""

    def __init__(self, device: str, answers):
        self.device, self.answers, self.libraries = device, answers, 0

    def begin(self) -> None:
        """Note what the libraries hold: they are imported, and no weight is loaded. On a GPU that is nothing."""
        self.libraries = memory.in_use(self.device)

    def wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)  # told to stop: nothing is worth cleaning up
        memory.reset_peak(self.device)
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def done(self, loss: float | None) -> None:
        """A step is done: answer, and wait for the next line.

        ``peak_mb`` is the most memory that the process, or torch on the GPU, has held in the step; ``own_mb`` leaves
        out what the process held before it loaded weights.
        """
        if self.device != "cpu":
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu_started
        peak = memory.peak(self.device)
        found = {"seconds": seconds, "adds": cpu / small_add(), "peak_mb": peak / 2**20,
                 "own_mb": (peak - self.libraries) / 2**20, "loss": loss}  # fmt: skip
        self.answers.write(json.dumps(found) + "\n")
        self.wait()


if __name__ == "__main__":
    main(sys.argv[1], Problem.from_json(sys.argv[2]), int(sys.argv[3]))
