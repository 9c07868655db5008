"""What becomes of every key of every trainer, as docs/importing.md: made from the rules that read the files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from .importing import documents
from .report import NOT_APPLICABLE
from .rules import ABSENT, Rule

TITLE = """\
# Coming from another trainer

`python -m flux2_train import FILE` reads another trainer's configuration, prints what became of every key, and writes a
job file for `python -m flux2_train train`. The node **Import Settings** does the same in ComfyUI. Nothing is dropped
silently: a key that this pack does not know is listed as unknown.

```
python -m flux2_train import config.json --dataset multidatabackend.json --out job.json
python -m flux2_train import train.sh --dataset photos --flavour klein-4b --out job.json
```

- `--dataset` names the data set file that goes with the configuration, or a folder of images in place of all that the
  file names. A data set file that the configuration names is found by itself if it lies in the configuration's folder
  or below it. Files elsewhere are never opened because a file says so.
- `--flavour` chooses the FLUX.2, where the file does not say which or is for another model.
- `--out` is the job file. Without it only the report is printed. Nothing is overwritten.
- The exit code is 1 if the file belongs to none of the trainers below, or if it cannot become a job here because it
  trains a whole model, or a model that is not FLUX.2.

| trainer | its files |
|---|---|
| SimpleTuner | `config.json`, with `multidatabackend.json` and a LyCORIS file; each of these alone |
| AI Toolkit | a job as YAML or JSON, also a row of its window's list of jobs |
| musubi-tuner | a text, shell or batch file with its FLUX.2 commands; their options as TOML; a data set file |
| OneTrainer | a preset or a whole configuration as JSON; a list of concepts |
| diffusers | a text, shell or batch file with the command of a `train_dreambooth_lora_flux2*.py` script |
| kohya | a data set file of sd-scripts in TOML or JSON, with subsets |

Files are read as plain values: nothing in them is run or imported. A file may have 10 MB (YAML 1 MB) and 40 levels.
TOML takes Python 3.11, or the package tomli.

## What the report says
- **used as**: our setting has the same value.
- **equivalent to**: our settings have another value, or several have, with the same effect; or it is always so here.
- **not applicable**: there is no counterpart, and the reason.
- **unknown**: no key of that trainer that this pack knows.

A `!` marks a row because of which the result differs from that trainer's. *(default)* marks a value that the file does
not have: that trainer's default, where it has one of its own.

## Conventions that differ
| what | there | here |
|---|---|---|
"""
CONVENTIONS = (
    (
        "alpha",
        "1 where it is not set in musubi-tuner and OneTrainer: the scale is 1 / rank. AI Toolkit forces it to the "
        "rank. The rank in SimpleTuner, 4 of rank 4 in diffusers",
        "0 is the rank; what was in effect there is written into the job",
    ),
    (
        "time",
        "musubi-tuner shows the model t + 0.001, but for `sigma`",
        "t as it was drawn; not copied",
    ),
    (
        "repeats",
        "SimpleTuner counts further times: 0 is once",
        "1 is once",
    ),
    (
        "epochs",
        "beside steps, one of which counts",
        "`steps` 0 counts epochs",
    ),
    (
        "resolution",
        "an area (most), the shorter side (SimpleTuner's `pixel`), megapixels of 1,000,000 (its `area`), width "
        "and height (musubi-tuner, kohya)",
        "the side of a square of that area; `resolution_type`",
    ),
    (
        "batches that are summed up",
        "AI Toolkit adds the gradients of several batches",
        "their mean",
    ),
    (
        "`selection_ratio`",
        "SimpleTuner's code takes it as the part of the tokens left out",
        "there is no routing here yet",
    ),
    (
        "`blocks_to_swap`",
        "musubi-tuner counts a single block as half",
        "every block counts as one",
    ),
    (
        "learning rate",
        "where it is not set: 4e-7 (SimpleTuner), 1e-6 (AI Toolkit), 2e-6 (musubi-tuner), 3e-6 (OneTrainer), 1e-4 "
        "(diffusers)",
        "that value is written into the job and marked *(default)*",
    ),
    (
        "references",
        "SimpleTuner shows them as clean",
        "`guidance.references` is `index_timestep_zero`",
    ),
    (
        "clipping",
        "SimpleTuner clamps every number by default",
        "the length of all gradients; off",
    ),
    (
        "layers",
        "diffusers' scripts train a part of the layers, SimpleTuner's code ignores its presets",
        "patterns of ours; a note",
    ),
)
PLACE = re.compile(r"[a-z_]+\.[a-z]|dataset")  # settings, and not words
LEGEND = "| key | what becomes of it | default there |\n|---|---|---|"


def markdown() -> str:
    """The whole of docs/importing.md."""
    parts = [TITLE + "\n".join(f"| {' | '.join(row)} |" for row in CONVENTIONS) + "\n"]
    for trainer, tables in documents().items():
        parts.append(f"## {trainer}\n")
        for title, rules in tables.items():
            parts.append("\n".join([f"### {title}\n", LEGEND, *_rows(rules)]) + "\n")
    return "\n".join(parts)


def _rows(rules: Iterable[Rule]) -> Iterator[str]:
    """One row for all keys that have the same fate."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for rule in rules:
        grouped.setdefault((_fate(rule), _default(rule.default)), []).append(f"`{rule.key}`")
    for (fate, default), keys in grouped.items():
        yield f"| {', '.join(keys)} | {fate} | {default} |"


def _fate(rule: Rule) -> str:
    """The verdict, our settings, and the reason."""
    words = rule.verdict if rule.verdict == NOT_APPLICABLE or not rule.ours else f"{rule.verdict} {rule.ours}"
    if PLACE.match(rule.ours):
        words = f"becomes `{rule.ours}`"
    why = rule.why.replace("|", "\\|")
    if why.startswith("yet: "):
        return f"{words} {why}"
    return f"{words}: {why}" if why else words


def _default(value: Any) -> str:
    return "" if value is ABSENT or value == "" else f"`{value}`"
