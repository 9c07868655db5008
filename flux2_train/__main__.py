"""``python -m flux2_train``: see ``flux2_train.terminal.main``."""

import sys

from .terminal.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
