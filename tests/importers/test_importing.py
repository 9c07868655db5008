"""Every key of every trainer's own example has a row, unknown ones too, and the result is a job of ours."""

import json
import sys
from pathlib import Path

import peer_configs as peers
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flux2_train.errors import UserError
from flux2_train.importers import commands, importing, reading
from flux2_train.importers.report import NOT_APPLICABLE, UNKNOWN, counts
from flux2_train.settings import job

TOML = pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python reads no TOML")
# name: the file, its content, the data set file that goes with it, and how many keys are used as, equivalent to, not
# applicable, unknown
EXAMPLES = {
    "SimpleTuner": ("config.json", peers.SIMPLETUNER, peers.SIMPLETUNER_DATA, (21, 26, 24, 0)),
    "SimpleTuner, LyCORIS": ("config.json", peers.SIMPLETUNER_LYCORIS, peers.SIMPLETUNER_EDITS, (13, 23, 18, 0)),
    "AI Toolkit": ("job.json", peers.AI_TOOLKIT, None, (30, 32, 28, 0)),
    "musubi-tuner": ("train.sh", peers.MUSUBI, peers.MUSUBI_DATA, (13, 14, 12, 0)),
    "OneTrainer": ("preset.json", peers.ONETRAINER, None, (3, 16, 5, 0)),
    "OneTrainer, whole model": ("preset.json", peers.ONETRAINER_FINE_TUNE, None, (4, 11, 11, 0)),
    "diffusers": ("train.sh", peers.DIFFUSERS, None, (11, 9, 2, 0)),
    "kohya": ("data.toml", peers.KOHYA, None, (14, 4, 1, 0)),
}  # fmt: skip
NAMES = [pytest.param(name, marks=TOML) if name in ("musubi-tuner", "kohya") else name for name in EXAMPLES]
# A file of each kind with a place for one more key, and what stands before the key in the report.
PLACES = {
    "SimpleTuner": ("config.json", {"model_family": "flux2", "data_backend_config": "x"}, ""),
    "SimpleTuner's data": ("data.json", [{"id": "a", "instance_data_dir": "/a"}], "[0]."),
    "AI Toolkit": ("job.json", {"config": {"name": "a", "process": [{"type": "sd_trainer"}]}}, "config.process[0]."),
    "OneTrainer": ("preset.json", {"model_type": "FLUX_2", "training_method": "LORA"}, ""),
    "OneTrainer's concepts": ("concepts.json", [{"path": "/a", "text": {}}], "[0]."),
    "musubi-tuner": ("train.sh", "python flux_2_train_network.py --dit a", "flux_2_train_network --"),
    "diffusers": ("train.sh", "python train_dreambooth_lora_flux2.py --rank 4", "train_dreambooth_lora_flux2 --"),
    "musubi-tuner's data": ("data.json", {"datasets": [{"image_directory": "/a"}]}, "datasets[0]."),
    "kohya": ("data.json", {"datasets": [{"subsets": [{"image_dir": "/a"}]}]}, "datasets[0].subsets[0]."),
}  # fmt: skip
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=12), st.lists(st.one_of(st.integers(), st.text(max_size=4)), max_size=3),
    st.sampled_from(["1e-4", "true", "none", "512,768", "1024x768", "adamw", "auto", "-1", "0", "C:\\a", "../b"]),
)  # fmt: skip


def imported(folder: Path, name: str) -> importing.Imported:
    file, content, data, _ = EXAMPLES[name]
    path = peers.write(folder / file, content)
    peers.write(folder / "lycoris_config.json", peers.LYCORIS)
    return importing.import_file(path, _data_file(folder, data))


def _data_file(folder: Path, data) -> Path | None:
    if data is None:
        return None
    return peers.write(folder / ("data.toml" if isinstance(data, str) else "multidatabackend.json"), data)


def expected_keys(folder: Path, name: str) -> list[str]:
    """The last parts of every key of the example's files, read without the importers."""
    _, content, data, _ = EXAMPLES[name]
    found = []
    for each in (content, data, *([peers.LYCORIS] if "LyCORIS" in name else [])):
        if isinstance(each, str) and "[[" in each:
            import tomllib

            each = tomllib.loads(each)
        found += (
            [word[2:].partition("=")[0] for word in each.split() if word[:2] == "--"]
            if isinstance(each, str)
            else list(last_keys(each))
        )
    return found


def last_keys(value) -> list[str]:
    """The names of all plain values, and of empty and plain lists."""
    if isinstance(value, list):
        return [key for each in value for key in last_keys(each)]
    if not isinstance(value, dict):
        return []
    found = []
    for key, each in value.items():
        inner = isinstance(each, dict) or (isinstance(each, list) and any(isinstance(e, (dict, list)) for e in each))
        found += last_keys(each) if inner and each else [key]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_the_example_has_one_row(tmp_path, name):
    result = imported(tmp_path, name)
    told = [row.key.rpartition(".")[2].rpartition("--")[2].rpartition(": ")[2] for row in result.rows if not row.absent]
    assert sorted(told) == sorted(key.replace("-", "_") for key in expected_keys(tmp_path, name))
    assert all((row.text and row.key in result.text) or row.short in result.text for row in result.rows)


@pytest.mark.parametrize("name", NAMES)
def test_how_many_keys_became_what(tmp_path, name):
    assert tuple(counts(imported(tmp_path, name).rows).values()) == EXAMPLES[name][3]


@pytest.mark.parametrize("name", NAMES)
def test_the_job_is_one_of_ours_or_the_reason_is_said(tmp_path, name):
    result = imported(tmp_path, name)
    if name == "OneTrainer, whole model":
        assert result.job is None and "trains LoRAs, not whole models" in result.blockers[0]
        return
    path = importing.write_job(result.job, tmp_path / "out" / "job.json")
    assert job.load(path) == result.job and not result.blockers
    with pytest.raises(UserError, match="is there already"):
        importing.write_job(result.job, path)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_says_used_only_if_that_very_value_is_in_the_job(tmp_path, name):
    result = imported(tmp_path, name)
    values = {} if result.job is None else json.loads(result.job.to_json())
    for row in (row for row in result.rows if row.verdict == "used as" and " = " in row.ours and values):
        place, shown = row.ours.split(" = ", 1)
        root, *path = place.split(".")
        for dataset in values["dataset"] if root == "dataset" else [values[root]]:
            found = dataset
            for part in path:
                found = found[part]
            text = {True: "on", False: "off"}.get(found, found) if isinstance(found, bool) else found
            if str(text) == str(shown) or (isinstance(text, float) and f"{text:g}" == shown) or shown == "''":
                break
        else:
            pytest.fail(f"{row.key}: {row.ours}, but the job has {found!r}")


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.from_regex(r"[a-z]{3,8}_[a-z]{3,8}q", fullmatch=True), value=VALUES)
def test_a_key_that_nobody_has_is_reported_as_unknown(tmp_path, place, key, value):
    file, content, prefix = PLACES[place]
    if isinstance(content, str):
        content, value = f"{content} --{key} 7", "7"
    else:
        content = json.loads(json.dumps(content))
        _innermost(content)[key] = value
    result = importing.import_file(peers.write(tmp_path / file, content))
    (row,) = [row for row in result.rows if row.key == prefix + key]
    assert row.verdict == UNKNOWN and "unknown" in result.text


def _innermost(content):
    """The object of the file that holds plain keys."""
    while True:
        inner = content if isinstance(content, dict) else content[0]
        for name in ("config", "process", "datasets", "subsets"):
            if isinstance(inner, dict) and name in inner:
                content = inner[name]
                break
        else:
            return inner


KNOWN = {name: [rule.key for rules in tables.values() for rule in rules if "[" not in rule.key]
         for name, tables in importing.documents().items()}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_of_a_known_key_gets_lost_or_breaks_the_report(tmp_path, place, data):
    """Whatever stands in the file: a row for each key, and a job, or a sentence on why there is none."""
    file, content, prefix = PLACES[place]
    trainer = next(name for name in KNOWN if name.split(" (")[0] == place.split("'")[0])
    keys = data.draw(st.lists(st.sampled_from(KNOWN[trainer]), min_size=1, max_size=6, unique=True))
    chosen = {key: data.draw(VALUES) for key in keys if "." not in key}
    if isinstance(content, str):
        chosen = {key: value for key, value in chosen.items() if isinstance(value, (int, float)) and value == value}
        content += "".join(f" --{key} {value}" for key, value in chosen.items())
    else:
        content = json.loads(json.dumps(content))
        _innermost(content).update({key: each for key, each in chosen.items() if key not in ("datasets", "subsets")})
    path = peers.write(tmp_path / file, content)
    try:
        result = importing.import_file(path)
    except UserError as error:
        assert "cannot be recognised" in str(error)
        return
    rows = {row.key for row in result.rows}
    if isinstance(content, str):
        assert {prefix + key for key in chosen} <= rows
    else:
        assert set(reading.leaves(content)) <= rows | {key.removeprefix("config.") for key in rows}
    assert (result.job is None) == bool(result.blockers)


def test_a_folder_in_place_of_the_data_set_is_the_only_one(tmp_path):
    path = peers.write(tmp_path / "job.json", peers.AI_TOOLKIT)
    (tmp_path / "photos").mkdir()
    result = importing.import_file(path, tmp_path / "photos")
    assert [each.folder for each in result.job.dataset] == [tmp_path / "photos"]
    assert result.job.dataset[0].crop_options.resolutions == (512, 768, 1024)
    assert result.rows[-1].key == "--dataset"


def test_without_a_folder_the_job_says_what_is_missing_and_is_refused(tmp_path):
    result = importing.import_file(peers.write(tmp_path / "preset.json", peers.ONETRAINER))
    with pytest.raises(UserError, match="the folder of images is not in preset.json: set dataset.folder"):
        result.job.require_known()
    path = importing.write_job(result.job, tmp_path / "job.json")
    job.load(path, ["dataset.folder=/photos", "unknown=[]"]).require_known()


def test_previews_without_a_prompt_are_named_and_left_out(tmp_path):
    config = {key: value for key, value in peers.SIMPLETUNER.items() if key != "validation_prompt"}
    result = importing.import_file(peers.write(tmp_path / "config.json", config))
    (row,) = [row for row in result.rows if row.key == "validation_steps"]
    assert result.job.previews is None and row.verdict == NOT_APPLICABLE and "no prompt to paint" in row.why


def test_a_file_of_nobody_is_refused_with_a_list_of_those_known(tmp_path):
    for name, content in (("a.json", {"a": 1}), ("b.json", [1]), ("c.sh", "ls"), ("d.json", "7"), ("e.json", "{}")):
        with pytest.raises(UserError, match="cannot be recognised as a configuration of a trainer.*SimpleTuner"):
            importing.import_file(peers.write(tmp_path / name, content))


def test_settings_of_another_model_are_taken_over_only_when_asked(tmp_path):
    path = peers.write(tmp_path / "config.json", {**peers.SIMPLETUNER, "model_family": "sdxl"})
    refused = importing.import_file(path)
    assert refused.job is None and "model_family is sdxl" in refused.blockers[0]
    taken = importing.import_file(path, None, "klein-4b")
    assert taken.job.model.flavour == "klein-4b"
    assert [row.differs for row in taken.rows if row.key == "model_family"] == [True]
    with pytest.raises(UserError, match="flavour"):
        importing.import_file(path, None, "klein-5b")


@pytest.mark.parametrize("text, options", [
    ("python run_s.py --a 1 --b=2 --c --d x y", {"a": "1", "b": "2", "c": True, "d": ["x", "y"]}),
    ("X=5\nset Y=6\npython run_s.py --a $X --b ${X} --c %Y% --d $Z", {"a": "5", "b": "5", "c": "6", "d": "$Z"}),
    ("python run_s.py \\\n  --a 'b c' \\\n  --d-e 2", {"a": "b c", "d_e": "2"}),
    ("python run_s.py ^\r\n --a C:\\x\\y ^\r\n --b 1", {"a": "C:\\x\\y", "b": "1"}),
    ("# python run_s.py --a 1\nrem python run_s.py --a 2\npython run_s.py --a -3 && rm -rf /", {"a": "-3"}),
    ("python run_s.py --a 1 --a 2", {"a": "2"}),
    ("python run_s.py --a $(rm x) --b `id`", {"a": ["$(rm", "x)"], "b": "`id`"}),
])  # fmt: skip
def test_a_command_line_is_read_and_never_run(text, options):
    (command,) = commands.commands(text, ("run_s",))
    assert command.options == options and command.script == "run_s"
