"""The peers' own files and options, where FLUX2_PEERS names a folder with their checkouts.

The folder holds SimpleTuner, ai-toolkit, musubi-tuner and OneTrainer, and diffusers/examples if diffusers is meant.
"""

import ast
import json
import os
import re
from pathlib import Path

import pytest

from flux2_train.importers import diffusers, importing, reading, rules
from flux2_train.importers.ai_toolkit import translate as ai_toolkit
from flux2_train.importers.musubi import translate as musubi
from flux2_train.importers.onetrainer import translate as onetrainer
from flux2_train.importers.report import UNKNOWN
from flux2_train.importers.simpletuner import translate as simpletuner

PEERS = Path(os.environ.get("FLUX2_PEERS", "/nonexistent"))
pytestmark = pytest.mark.skipif(not PEERS.is_dir(), reason="FLUX2_PEERS names no folder with the peers' checkouts")
FILES = [
    *(p for p in sorted(PEERS.glob("SimpleTuner/simpletuner/examples/flux2*/config.json"))),
    *(p for p in sorted(PEERS.glob("SimpleTuner/simpletuner/examples/multidatabackend-*.json")) if "px" in p.name),
    *(p for p in sorted(PEERS.glob("ai-toolkit/config/examples/train_lora_*.yaml")) if "omnigen" not in p.name),
    *sorted(PEERS.glob("OneTrainer/training_presets/Flux 2/*.json")),
]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_key_of_a_shipped_file_is_known(path):
    result = importing.import_file(path, flavour="klein-9b")
    told = {row.key for row in result.rows if not row.absent}
    assert {key.removeprefix("--") for key in reading.leaves(reading.read(path))} <= told
    assert not [row.key for row in result.rows if row.verdict == UNKNOWN]
    assert (result.job is None) == ("Finetune" in path.name or "video" in path.name)


def options(*paths: str) -> set[str]:
    """The options that scripts define, read from their source."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse((PEERS / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                names = [each.value for each in node.args if isinstance(each, ast.Constant)]
                found |= {name[2:].replace("-", "_") for name in names if str(name).startswith("--")}
    return found


def unknown(names: set[str], *tables) -> list[str]:
    return sorted(name for name in names if not rules.find([rule for table in tables for rule in table], name))


def test_every_option_of_musubi_is_known():
    folder = "musubi-tuner/src/musubi_tuner"
    training = options(f"{folder}/training/parser_common.py", f"{folder}/flux_2_train_network.py",
                       f"{folder}/flux_2/flux2_utils.py")  # fmt: skip
    caching = options(f"{folder}/flux_2_cache_latents.py", f"{folder}/cache_latents.py")
    assert len(training) > 100 and not unknown(training, musubi.OPTIONS)
    assert not unknown(caching - {"batch_size"}, musubi.CACHING)


def test_every_key_of_onetrainer_is_known():
    source = (PEERS / "OneTrainer/modules/util/config/TrainConfig.py").read_text(encoding="utf-8")
    whole = source[source.index("class TrainConfig(") :]
    names = set(re.findall(r'data\.append\(\("(\w+)"', whole))
    parts = {"transformer", "text_encoder", "vae", "optimizer"}
    assert len(names) > 150 and not unknown(names - parts, onetrainer.ORDERED)
    optimizer = source[source.index("class TrainOptimizerConfig(") : source.index("class TrainModelPartConfig(")]
    found = {f"optimizer.{name}" for name in re.findall(r'data\.append\(\("(\w+)"', optimizer)}
    assert len(found) > 80 and not unknown(found, onetrainer.ORDERED)


def test_every_key_of_ai_toolkit_is_known():
    source = (PEERS / "ai-toolkit/toolkit/config_modules.py").read_text(encoding="utf-8")
    kinds = {"TrainConfig": "train.", "ModelConfig": "model.", "SampleConfig": "sample.", "SaveConfig": "save.",
             "NetworkConfig": "network.", "DatasetConfig": ""}  # fmt: skip
    for kind, prefix in kinds.items():
        text = re.split(r"\nclass \w+", source[source.index(f"class {kind}") + 6 :])[0]
        names = {prefix + name for name in re.findall(r"kwargs\.(?:get|pop)\(\s*['\"](\w+)['\"]", text)}
        table = ai_toolkit.MAIN if prefix else ai_toolkit.DATA
        parts = {rule.key.rpartition(".")[0] for rule in table}  # groups of keys, whose own keys have rules
        assert len(names) >= 5 and not unknown(names - parts - {"sample.samples"}, table)


def test_every_option_of_simpletuner_is_known():
    folder = PEERS / "SimpleTuner/simpletuner"
    names = set()
    for path in (folder / "simpletuner_sdk/server/services/field_registry/sections").glob("*.py"):
        names |= set(re.findall(r'arg_name="--(\w+)"', path.read_text(encoding="utf-8")))
    assert len(names) > 300 and not unknown(names, simpletuner.FILES, simpletuner.CONFIG)


def test_every_option_of_diffusers_is_known():
    scripts = sorted((PEERS / "diffusers/examples/dreambooth").glob("train_dreambooth_lora_flux2*.py"))
    if not scripts:
        pytest.skip("FLUX2_PEERS has no diffusers/examples")
    names = options(*(str(path.relative_to(PEERS)) for path in scripts))
    assert len(names) > 80 and not unknown(names, diffusers.OPTIONS)


def test_ai_toolkits_window_writes_keys_that_are_known():
    """The default job of its window, whose keys are in TypeScript."""
    source = (PEERS / "ai-toolkit/ui/src/app/jobs/new/jobConfig.ts").read_text(encoding="utf-8")
    text = source[source.index("export const defaultDatasetConfig") : source.index("export const defaultSliderConfig")]
    names = set(re.findall(r"^  (\w+):", text, re.MULTILINE))
    assert len(names) > 12 and not unknown(names, ai_toolkit.DATA)
    assert json.dumps(sorted(names))
