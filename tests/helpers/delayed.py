"""A device that is late: copies and computation run in threads of their own, with delays, as on a GPU's two streams."""

from __future__ import annotations

import queue
import random
import threading
import time

import comfy.model_management
import torch

from flux2_train.streaming.ring import Direct

POISON = 0xAB


class Stream:
    """Runs what it is given in order, each after a random delay. An error is kept for ``finish``."""

    def __init__(self, seconds: float, seed: int):
        self.seconds, self.dice, self.jobs, self.errors = seconds, random.Random(seed), queue.Queue(), []
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while True:
            job = self.jobs.get()
            time.sleep(self.dice.random() * self.seconds)
            try:
                job()
            except BaseException as error:
                self.errors.append(error)
            self.jobs.task_done()

    def add(self, job):
        self.jobs.put(job)

    def finish(self):
        self.jobs.join()
        assert not self.errors, self.errors


class Late(Direct):
    """Its buffers hold poison until their copy is whole.

    With ``compute`` a stream, ``wait`` and ``mark`` are points on that stream, and ``compute.add`` is a kernel;
    without, whoever waits is stopped, as computation on a CPU is. The copy number ``fail_at`` finds no memory.
    """

    def __init__(self, seconds: float = 0.002, seed: int = 0, compute: Stream | None = None):
        super().__init__(comfy.model_management.get_torch_device())
        self.stream, self.compute, self.copies, self.fail_at = Stream(seconds, seed), compute, 0, None

    def empty(self, size):
        with torch.inference_mode(False):
            return super().empty(size).fill_(POISON)

    def copy(self, pairs, after):
        self.copies += 1
        if self.copies == self.fail_at:
            raise torch.OutOfMemoryError("no memory for this copy")
        arrived = threading.Event()

        def run():
            if after is not None:
                assert after.wait(60)
            with torch.inference_mode():
                for _, target in pairs:
                    target.fill_(POISON)
                time.sleep(self.stream.dice.random() * self.stream.seconds)
                for source, target in pairs:
                    target.copy_(source)
            arrived.set()

        self.stream.add(run)
        return arrived

    def wait(self, arrival):
        if self.compute is None:
            assert arrival.wait(60)
        else:
            self.compute.add(lambda: arrival.wait(60))

    def mark(self):
        reached = threading.Event()
        self.compute.add(reached.set) if self.compute else reached.set()
        return reached

    def finish(self):
        self.stream.finish()
        if self.compute:
            self.compute.finish()


class Card(Late):
    """A device on which the given weights lie, and ``room`` bytes are free beside them."""

    def __init__(self, weights, room: int = 0):
        super().__init__(0.0005)
        self.there, self.room, self.pins = {weight.data_ptr(): weight for weight in weights}, room, True

    def holds(self, tensor):
        return tensor.data_ptr() in self.there

    def to_host(self, tensor):
        copy = tensor.clone()
        self.room += self.there.pop(tensor.data_ptr()).nbytes
        return copy

    def to_device(self, tensor):
        if tensor.nbytes > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a weight")
        self.room -= tensor.nbytes
        copy = tensor.clone()
        self.there[copy.data_ptr()] = copy
        return copy
