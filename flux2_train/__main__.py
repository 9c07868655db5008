"""``python -m flux2_train``: see ``flux2_train.terminal.main``."""

import os
import sys

from .terminal.main import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from .run.processes import leave

        leave(code)
    sys.exit(code)
