"""``import FILE``: the report, the job file, and the exit codes."""

from pathlib import Path

import peer_configs as peers
import pytest

from flux2_train.settings import job
from flux2_train.terminal.main import main


def test_the_report_is_printed_and_the_job_written_once(tmp_path, capsys):
    path, out = peers.write(tmp_path / "job.json", peers.AI_TOOLKIT), tmp_path / "new" / "ours.json"
    assert main(["import", str(path), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "used as training.steps = 3000" in printed and "98" not in printed.splitlines()[0]
    assert "90 keys: 30 used as, 32 equivalent to, 28 not applicable, 0 unknown." in printed
    assert Path(printed.splitlines()[-1]) == out
    assert job.load(out).training.steps == 3000
    assert main(["import", str(path), "--out", str(out)]) == 1
    assert "is there already; name another file" in capsys.readouterr().err


def test_a_data_set_file_and_a_flavour_go_with_it(tmp_path, capsys):
    path = peers.write(tmp_path / "config.json", peers.SIMPLETUNER)
    data = peers.write(tmp_path / "other" / "data.json", peers.SIMPLETUNER_DATA)
    out = tmp_path / "ours.json"
    line = ["import", str(path), "--dataset", str(data), "--flavour", "klein-4b", "--out", str(out)]
    assert main(line) == 0
    made = job.load(out)
    assert (made.model.flavour, str(made.dataset[0].folder), made.dataset[0].repeats) == (
        "klein-4b",
        "/data/my-dataset",
        11,
    )
    assert "data.json: [0]:" in capsys.readouterr().out


@pytest.mark.parametrize("content, words", [
    ({"a": 1}, "cannot be recognised as a configuration of a trainer"),
    (peers.ONETRAINER_FINE_TUNE, "training_method is 'FINE_TUNE': this pack trains LoRAs"),
    ("{", "cannot be read"),
])  # fmt: skip
def test_what_is_no_job_ends_with_1_and_writes_nothing(tmp_path, capsys, content, words):
    path, out = peers.write(tmp_path / "x.json", content), tmp_path / "ours.json"
    assert main(["import", str(path), "--out", str(out)]) == 1
    assert words in capsys.readouterr().err and not out.exists()


def test_a_data_set_that_goes_with_nothing_is_refused(tmp_path, capsys):
    path = peers.write(tmp_path / "job.json", peers.AI_TOOLKIT)
    data = peers.write(tmp_path / "data.json", peers.SIMPLETUNER_DATA)
    assert main(["import", str(path), "--dataset", str(data)]) == 1
    assert "data.json is no data set file that goes with job.json" in capsys.readouterr().err
    assert main(["import"]) == 1
