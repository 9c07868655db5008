"""One process of several that ``accelerate launch`` started: reads shared groups in an order that nobody can guess.

Argument: the file to write (with the process's number behind it): how many reads there were, how many of them gave
other numbers than were cut, and how often the ring had guessed wrong.
"""

import json
import random
import sys
from pathlib import Path

from flux2_train.train import processes

GROUPS, NUMBERS, READS = 6, 1 << 19, 400  # 2 MB a group

with processes.launched() as accelerator:
    import torch

    from flux2_train.streaming.gathering import Gathered
    from flux2_train.streaming.ring import Ring

    torch.set_num_threads(1)
    via = Gathered(torch.device("cpu"))
    weights = [{str(number): [torch.full((NUMBERS,), float(number))]} for number in range(GROUPS)]
    ring = Ring([via.group(each) for each in weights], via)
    draw, wrong = random.Random(0), 0
    for _ in range(READS):
        number = draw.randrange(GROUPS)
        with ring.read(str(number)) as (tensor,):
            wrong += not bool((tensor == number).all())
    ring.close()
    found = {"reads": READS, "wrong": wrong, "missed": ring.missed}
    Path(f"{sys.argv[1]}.{accelerator.process_index}").write_text(json.dumps(found))
processes.leave()
