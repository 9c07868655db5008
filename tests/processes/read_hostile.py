"""Reads a folder of images and prints by how many bytes the process grew at its peak."""

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flux2_train.data.folder import read_folder
from flux2_train.errors import UserError
from flux2_train.settings.dataset_folder import DatasetSettings

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_folder(DatasetSettings(Path(sys.argv[1]), resolution=64, prompt="x"))
except UserError as error:
    print(error, file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
