"""``bench.gpu``: its rows are right on a CPU, and whatever happens to one row costs itself alone."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from bench.gpu import __main__ as command
from bench.gpu.process import Lost, Process
from bench.gpu.results import Results
from bench.gpu.rows import REMEDIES, chosen, rows
from flux2_train.host.loading import load
from flux2_train.settings.model import ModelSettings

pytestmark = pytest.mark.long  # rows are measured by a process of their own

CARD = {"card": {"type": "cuda", "name": "NVIDIA X 1", "computes_in": "bf16"}, "versions": {"torch": "2.11"}}


def test_rows_have_names_of_their_own_and_the_most_telling_are_first():
    for device in ("cpu", "cuda"):
        names = [row.name for row in rows(device)]
        assert len(set(names)) == len(names)
        kinds = list(dict.fromkeys(row.kind for row in rows(device)))
        assert kinds == ["rates", "gradient", "run", "step", "ablation", "cards", "scaling", "diffusers"]
    assert [row.name for row in chosen(rows("cuda"), ["klein-9b-512*", "rates"])] == [
        "rates", "klein-9b-512-fp8", "klein-9b-512-bf16"]  # fmt: skip
    for flavour in ("klein-9b", "klein-4b", "dev"):
        for pixels in (512, 1024):
            assert chosen(rows("cuda"), [f"{flavour}-{pixels}-*"])


class Answers:
    """In place of the process that measures: what it answers, by the row's name; Lost where that is no dict."""

    def __init__(self, log: list, answers: dict):
        self.log, self.answers, self.asked = log, answers, None
        log.append("began")

    def ask(self, request: dict) -> None:
        self.asked = request["name"]
        self.log.append(self.asked)

    def answer(self, seconds: float) -> dict:
        found = CARD if self.asked is None else self.answers.get(self.asked, {"right": True})
        if isinstance(found, str):
            raise Lost(found)
        return dict(found)

    def stop(self) -> None:
        self.log.append("stopped")


def bench(monkeypatch, tmp_path, answers: dict, *arguments: str) -> tuple[int, dict, list]:
    log = []
    monkeypatch.setattr(command, "Process", lambda _: Answers(log, answers))
    out = tmp_path / "gpu_x.json"
    code = command.main(["--out", str(out), *arguments])
    return code, json.loads(out.read_text()), log


def test_a_row_that_fails_hangs_or_ends_the_process_costs_itself_alone(monkeypatch, tmp_path, capsys):
    answers = {
        "gradient-bf16": {"failed": "RuntimeError: no"}, "gradient-fp8": {"failed": "CUDA error", "unusable": True},
        "gradient-e4m3": "no answer in 150 s", "gradient-mxfp8": {"right": False, "error": 0.7},
    }  # fmt: skip
    code, found, log = bench(monkeypatch, tmp_path, answers, "--rows", "gradient-*")
    assert code == 1
    names = [row.name for row in chosen(rows("cuda"), ["gradient-*"])]
    assert list(found["rows"]) == names and found["not_reached"] == []
    assert log == ["began", "gradient-bf16", "gradient-fp8", "stopped", "began", "gradient-e4m3", "stopped", "began",
                   "gradient-mxfp8", *names[4:], "stopped"]  # fmt: skip
    assert found["rows"]["gradient-e4m3"]["failed"] == "no answer in 150 s"
    out = capsys.readouterr().out
    assert "Went wrong: gradient-bf16, gradient-fp8, gradient-e4m3, gradient-mxfp8" in out
    assert "WRONG 7.00e-01 off" in out


def test_every_row_is_written_as_it_is_done(monkeypatch, tmp_path):
    seen = []

    class Looks(Answers):
        def ask(self, request):
            found = json.loads((tmp_path / "x.json").read_text())
            seen.append(list(found["rows"]))
            assert [*found["rows"], *found["not_reached"]] == ["rates", "run-resident", "run-streamed"]
            super().ask(request)

    monkeypatch.setattr(command, "Process", lambda _: Looks([], {}))
    assert command.main(["--out", str(tmp_path / "x.json"), "--rows", "run-*", "rates"]) == 0
    assert seen == [[], ["rates"], ["rates", "run-resident"]]


def test_what_is_not_reached_is_listed_and_can_be_measured_then(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command.Bench, "left", property(lambda self: 100.0 if len(self.results.begun) < 2 else 1.0))
    monkeypatch.setattr(command.Bench, "_begin", _begin_without_looking_at_the_time)
    code, found, _ = bench(monkeypatch, tmp_path, {}, "--rows", "gradient-*")
    names = [row.name for row in chosen(rows("cuda"), ["gradient-*"])]
    assert code == 0 and list(found["rows"]) == names[:2] and found["not_reached"] == names[2:]
    assert f"Not reached: python -m bench.gpu --rows {' '.join(names[2:])}" in capsys.readouterr().out
    monkeypatch.undo()
    _, found, _ = bench(monkeypatch, tmp_path, {}, "--rows", *names[2:])
    assert list(found["rows"]) == names and found["not_reached"] == []


def _begin_without_looking_at_the_time(self):
    self.process = command.Process([])
    return self.process.answer(1.0)


def test_where_nothing_starts_it_says_why(monkeypatch, tmp_path, capsys):
    def lost(_):
        raise Lost("the process that measures ended with 1")

    monkeypatch.setattr(command, "Process", lost)
    assert command.main(["--out", str(tmp_path / "x.json")]) == 2
    assert "Nothing could be measured: the process that measures ended with 1" in capsys.readouterr().err


@pytest.mark.parametrize("names, began", [(["klein-5b*"], []), (["rates", "klein-5b*"], []),
                                          (["rates", "nano-*"], ["began", "stopped"])])  # fmt: skip
def test_a_name_of_no_row_is_told_and_no_file_touched(monkeypatch, tmp_path, capsys, names, began):
    """Before anything starts, but for rows of another kind of device."""
    log, out = [], tmp_path / "x.json"
    monkeypatch.setattr(command, "Process", lambda _: Answers(log, {}))
    out.write_text("older")
    assert command.main(["--out", str(out), "--rows", *names]) == 2
    assert f"No row is called {names[-1]};" in capsys.readouterr().err
    assert out.read_text() == "older" and log == began


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "nine"])
def test_minutes_are_a_number_above_0(capsys, minutes):
    with pytest.raises(SystemExit):
        command.main(["--minutes", minutes])
    assert f"{minutes} is no number of minutes" in capsys.readouterr().err


def test_what_cannot_be_packed_is_told(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert command.main(["--pack", str(tmp_path)]) == 2
    assert command.main(["--pack", str(tmp_path / "new"), "--python", "newest"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err == [f"{tmp_path} is not empty; name a new folder.", "--python is 'newest'; give it as 3.12."]


def test_where_the_file_cannot_be_written_nothing_is_measured(monkeypatch, tmp_path, capsys):
    log = []
    monkeypatch.setattr(command, "Process", lambda _: Answers(log, {}))
    assert command.main(["--out", str(tmp_path), "--rows", "rates"]) == 2
    assert "Nothing could be measured" in capsys.readouterr().err and log == ["began", "stopped"]


def test_a_disk_that_is_full_for_a_while_costs_no_row(monkeypatch, tmp_path, capsys):
    from bench.gpu import results

    written, whole = [], results.write_text

    def full(path, text):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        whole(path, text)

    monkeypatch.setattr(results, "write_text", full)
    code, found, _ = bench(monkeypatch, tmp_path, {}, "--rows", "rates", "run-*")
    assert code == 0 and list(found["rows"]) == ["rates", "run-resident", "run-streamed"]
    assert "could not be written: [Errno 28] No space left on device" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_measured_and_lists_the_rest(monkeypatch, tmp_path, capsys):
    class Interrupted(Answers):
        def answer(self, seconds):
            if self.asked == "run-resident":
                raise KeyboardInterrupt
            return super().answer(seconds)

    log, out = [], tmp_path / "x.json"
    monkeypatch.setattr(command, "Process", lambda _: Interrupted(log, {}))
    assert command.main(["--out", str(out), "--rows", "rates", "run-*"]) == 130
    found = json.loads(out.read_text())
    assert list(found["rows"]) == ["rates"] and found["not_reached"] == ["run-resident", "run-streamed"]
    assert "Not reached: python -m bench.gpu --rows run-resident run-streamed" in capsys.readouterr().out
    assert log[-1] == "stopped"


def test_what_earlier_calls_did_not_reach_stays_listed(monkeypatch, tmp_path):
    first = Results(CARD, tmp_path / "gpu_x.json", waiting=["rates", "run-resident", "run-streamed"])
    first.add("rates", {"right": True})
    _, found, _ = bench(monkeypatch, tmp_path, {}, "--rows", "run-resident")
    assert list(found["rows"]) == ["rates", "run-resident"] and found["not_reached"] == ["run-streamed"]


@pytest.mark.skipif(sys.platform != "linux", reason="its processes are looked up in /proc")
def test_killed_in_the_middle_it_leaves_its_rows_and_no_process(tmp_path):
    """The real command: what it had measured is in its file, with all that is left to do; the card is free at once."""
    out = tmp_path / "x.json"
    started = subprocess.Popen([sys.executable, "-m", "bench.gpu", "--device", "cpu", "--out", out],
                               cwd=ROOT, stdout=subprocess.PIPE, text=True)  # fmt: skip
    for line in started.stdout:
        if line.startswith("rates "):
            break
    worker = children(started.pid)
    assert worker
    started.kill()
    started.wait()
    found = json.loads(out.read_text())
    names = [row.name for row in rows("cpu")]
    done = list(found["rows"])
    assert done and names == [*done, *found["not_reached"]]
    deadline = time.monotonic() + 60
    while any(map(runs, worker)):
        assert time.monotonic() < deadline, "the process that measures stayed"
        time.sleep(0.1)


def runs(pid: int) -> bool:
    """Whether a process is there and is more than an entry that nobody has asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return [int(text) for path in Path(f"/proc/{pid}/task").glob("*/children") for text in path.read_text().split()]


@pytest.fixture(scope="module")
def process():
    """The real process that measures, on the CPU."""
    running = Process(["cpu", ""])
    running.facts = running.answer(120)
    yield running
    running.stop()


def ask(process, kind: str, **arguments) -> dict:
    process.ask({"name": "", "kind": kind, "arguments": arguments})
    return process.answer(240)


def test_what_it_runs_on_is_said_first(process):
    assert process.facts["card"]["type"] == "cpu" and process.facts["versions"]["comfyui"]
    assert process.facts["replaced"] == []  # everything is installed where the tests run


def test_the_matrix_rate_of_the_first_row_is_what_steps_are_compared_with(monkeypatch, tmp_path):
    from bench.gpu import worker
    from flux2_train.host.system import rates as kept

    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(kept, "_known", {})
    found = worker.KINDS["rates"]()
    assert found["flops"] == kept.rates(torch.device("cpu")).flops and "measured on this" in found["words"]


def test_an_error_is_an_answer_and_the_next_row_is_measured(process):
    assert ask(process, "nothing")["failed"] == "KeyError: 'nothing'"
    assert ask(process, "step", flavour="nano", pixels=256, precision="bf16", card=-1)["refused"]
    found = ask(process, "gradient", precision="bf16")
    assert found["right"] and found["error"] <= found["bound"] < 0.1 and found["zeros"] < 0.01


def test_gradients_that_are_off_are_wrong():
    from bench.gpu.gradients import compared

    exact = {"a": torch.ones(4), "b": torch.ones(2)}
    assert compared({"a": torch.full((4,), 1.01), "b": torch.ones(2)}, exact, 0.02)["right"]
    for wrong in (1.03, 0.0, -1.0, float("nan"), float("inf")):
        found = compared({"a": torch.ones(4), "b": torch.full((2,), wrong)}, exact, 0.02)
        assert not found["right"] and found["error"] > 0.02


@pytest.mark.parametrize("more", [
    pytest.param({"dtype": "fp16"}, marks=pytest.mark.slow), {"streamed": True},
])  # fmt: skip
def test_gradients_in_fp16_and_streamed_are_right(process, more):
    found = ask(process, "gradient", precision="fp8 (scaled)", **more)
    assert found["right"] and found["zeros"] < 0.01


def test_a_model_that_is_not_given_back_is_noticed(shipped_nano):
    import comfy.model_management

    from bench.gpu.runs import PREFIX, _given_back

    comfy.model_management.unload_all_models()  # else the weights hold the LoRA with which another test sampled last
    path, whole = load.locate_parts(ModelSettings("nano"))[0], shipped_nano.model.model_state_dict(PREFIX)
    assert _given_back(shipped_nano.model, path)
    norm = "double_blocks.0.img_attn.norm.key_norm"
    touched = [name for name in whole if name.endswith(("img_in.weight", f"{norm}.weight", f"{norm}.scale"))]
    assert len(touched) == 2
    for name in touched:
        other = SimpleNamespace(model_state_dict=lambda _, name=name: {**whole, name: whole[name] * 1.5})
        assert not _given_back(other, path), name


@pytest.mark.slow
def test_a_run_with_a_preview_is_taken_up_to_the_same_lora(process):
    found = ask(process, "run", offload="all")
    assert found["right"], found
    assert found["error"] == 0 and "blocks streamed" in found["layout"]


def test_a_step_is_measured_against_its_plan(process):
    found = ask(process, "step", flavour="nano", pixels=128, precision="bf16", offload="all")
    assert found["seconds"] > 0 and found["planned_seconds"] > 0 and 0 < found["of_products"] < 10
    assert found["traffic"] == found["planned_traffic"] > 0 and len(found["all_seconds"]) == 5


def test_a_step_without_any_remedy_is_measured(process):
    found = ask(process, "ablation", flavour="nano", pixels=64, precision="bf16", remedies=[])
    assert found["seconds"] > 0 and found["loss"] > 0 and "recomputed" in found["layout"]


def test_a_certified_step_is_measured(process):
    found = ask(process, "ablation", flavour="nano", pixels=64, precision="bf16", remedies=REMEDIES, speed="certified")
    assert found["seconds"] > 0 and ("layers, cosine of the gradient" in found["products"]
                                     or "exact products: 8 bits take" in found["products"])  # fmt: skip


def test_a_step_with_the_fastest_attention_says_what_it_chose(process):
    found = ask(process, "ablation", flavour="nano", pixels=64, precision="bf16", remedies=[], attention="fastest")
    chosen, shape, _ = found["attention"].partition(" for 1 x 2 heads x ")
    # On a CPU both are the same kernel, whose times differ by chance
    assert found["seconds"] > 0 and chosen in ("comfyui", "flash") and shape
