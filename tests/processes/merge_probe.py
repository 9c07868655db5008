"""Merges a LoRA into a FLUX.2 file: python merge_probe.py FOLDER SINGLE_BLOCKS.

Prints the most bytes that lay in blocks of their own meanwhile, which is where everything of a megabyte and more lies
while merging, and the size of the file. In a process of its own, or what others have freed would be used again unseen.
"""

import sys
import threading
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from flux2_train.host.system.bootstrap import import_comfyui  # noqa: E402

import_comfyui()

import torch  # noqa: E402
from glibc import malloc_info  # noqa: E402

from bench.speed.problem import Problem, write_weights  # noqa: E402
from flux2_train.adapters import files, names, write  # noqa: E402
from flux2_train.adapters.parts import LowRank  # noqa: E402
from flux2_train.host.lora.merge import merge  # noqa: E402
from flux2_train.host.system.heap import freed_at_once  # noqa: E402


@contextmanager
def watched(measure):
    """A list that fills with what ``measure`` gives, from before the block to its end, every two milliseconds."""
    seen, ended = [measure()], threading.Event()

    def watch():
        while not ended.wait(0.002):
            seen.append(measure())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def prepared(problem: Problem, path: Path) -> Path:
    """Writes the model, and a LoRA for all of its blocks to ``path``."""
    write_weights(problem)
    sizes = names.sizes_of(problem.hidden, problem.double, problem.single, problem.context)
    blocks = {name: size for name, size in sizes.items() if "_blocks." in name}
    parts = {name: LowRank(torch.randn(4, into), torch.randn(out, 4)) for name, (into, out) in blocks.items()}
    return files.save(write.tensors(parts), path, {})


def main(folder: Path, single: int) -> None:
    problem = Problem(str(folder / "base.safetensors"), hidden=512, double=1, single=single, dtype="bfloat16")
    with freed_at_once(torch.device("cpu")):  # or merging would use these blocks again, which lie on the heap
        path = prepared(problem, folder / "lora.safetensors")
    with watched(lambda: malloc_info().hblkhd) as seen:
        merge(Path(problem.weights), [(path, 1.0)], folder / "out.safetensors")
    print(max(seen) - seen[0], Path(problem.weights).stat().st_size)


main(Path(sys.argv[1]), int(sys.argv[2]))
