"""One process of several that ``accelerate launch`` started: takes part in ten sums, of which process 1 is late.

Argument: the file to write (with the process's number behind it): the last sum, what was said of the pace,
and the seconds of the slowest process in the last step.
"""

import json
import sys
import time
from pathlib import Path

from flux2_train.train import processes

LATE = 0.1  # seconds

with processes.launched() as accelerator:
    import torch

    pace, said = processes.Pace(accelerator), []
    for step in range(processes.PACE_STEPS + 2):
        pace.begin()
        time.sleep(LATE * (accelerator.process_index == 1))
        pace.end(torch.zeros(()))
        summed = pace.total(torch.tensor([1.0, float(step)], dtype=torch.float64))
        said.append(pace.slow())
    out = Path(f"{sys.argv[1]}.{accelerator.process_index}")
    out.write_text(json.dumps([summed.tolist(), said, pace.slowest(-1.0)]))
processes.leave()
