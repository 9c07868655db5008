"""Logs and files of previews, read back by those who read them."""

import json
import struct
import sys
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image
from support import brief_flux2, tiny_caches
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flux2_train import events
from flux2_train.errors import UserError
from flux2_train.evaluate import sheets
from flux2_train.evaluate.plots import loss_plot
from flux2_train.events import Previewed, PreviewPicture
from flux2_train.runs import logs
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.session import train
from flux2_train.runs.writers.preview_files import MOST_COLUMNS, PreviewFiles
from flux2_train.settings.objective import PreservationSettings
from flux2_train.settings.previews import ValidationLossSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train.history import BANDS, History

CONFIG = TrainingSettings(name="logged", steps=3, rank=2, validation_items=2, preservation=0.5, checkpointing=False,
                     preservation_options=PreservationSettings(every=2),
                     logs="csv and TensorBoard", validation_loss=ValidationLossSettings(per_image=True))  # fmt: skip


def picture(label="zbot at sea", level=0.5):
    return PreviewPicture(label, torch.zeros(16, 32, 3), torch.full((16, 32, 3), level), {"prompt": label, "seed": 3})


@pytest.mark.long
def test_tensorboard_reads_what_the_run_has_measured(tmp_path):
    received = []
    trainer = new_trainer(brief_flux2(), *tiny_caches(3), CONFIG)
    with torch.inference_mode():
        results = train(trainer, tmp_path / "loras", tmp_path / "runs", received.append)
    log = EventAccumulator(str(RunFolder(results.folder).tensorboard))
    log.Reload()
    steps = [e for e in received if isinstance(e, events.Stepped)]
    for tag, values in (("loss/raw", [e.loss for e in steps]), ("loss/smoothed", [e.smoothed for e in steps])):
        assert [s.step for s in log.Scalars(tag)] == [1, 2, 3]
        assert [s.value for s in log.Scalars(tag)] == pytest.approx(values, rel=1e-6)  # kept in fp32
    validation = {s.step: s.value for s in log.Scalars("loss/validation")}
    assert validation == pytest.approx(trainer.history.validation, rel=1e-6)
    assert {f"images/{item.path.name}" for item in trainer.samples.items} <= set(log.Tags()["scalars"])
    assert '"rank": 2' in str(log.Tensors("configuration/text_summary")[0].tensor_proto.string_val)


def test_tensorboard_gets_the_pictures(tmp_path):
    folder = RunFolder(tmp_path)
    (log,) = logs.opened(CONFIG, folder)
    log(Previewed(7, (picture(level=0.25),)))
    log.close()
    read = EventAccumulator(str(folder.tensorboard))
    read.Reload()
    (image,) = read.Images("preview 1: zbot at sea")
    assert (image.step, image.width, image.height) == (7, 32, 16)


def wandb_records(path):
    """What lies in an offline run's file: LevelDB's log, records of 7 bytes (checksum, size, kind) and protobuf.

    After 7 bytes of its own. Blocks are 32 KiB; a record in parts begins with kind 2 and ends with 4, a whole one is 1.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""


def wandb_history(records):
    """Every logged row: its step, and its values by key; of pictures the keys' parts joined."""
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            named = {i.key or "|".join(i.nested_key): json.loads(i.value_json) for i in items}
            yield record.history.step.num, named


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def offline_run(folder):
    """The file of the one offline run in a folder. Its process has ended then: it writes on after ``finish``."""
    import wandb

    wandb.teardown()  # which also forgets what the environment said
    (written,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    return written


@pytest.mark.long
def test_weights_and_biases_keeps_what_the_run_has_measured(tmp_path, offline):
    received, trainer = (
        [],
        new_trainer(brief_flux2(), *tiny_caches(3), replace(CONFIG, logs="csv and Weights & Biases")),
    )
    with torch.inference_mode():
        results = train(trainer, tmp_path / "loras", tmp_path / "runs", received.append)
    records = list(wandb_records(offline_run(results.folder)))
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name, run.run_group) == ("flux2_train", "logged", "logged")
    assert {"rank": 2, "steps": 3}.items() <= {u.key: json.loads(u.value_json) for u in run.config.update}.items()
    kinds = {record.WhichOneof("record_type") for record in records}
    assert "output" not in kinds and "output_raw" not in kinds  # what ComfyUI prints is not for them
    rows = dict(wandb_history(records))
    for event in received:
        if isinstance(event, events.Stepped):
            row = rows[event.step]
            assert (row["loss/raw"], row["loss/smoothed"]) == (event.loss, event.smoothed)
        if isinstance(event, events.Validated):
            assert rows[event.step]["loss/validation"] == event.loss
    assert {f"images/{item.path.name}" for item in trainer.samples.items} <= rows[3].keys() & rows[0].keys()


@pytest.mark.long
def test_weights_and_biases_gets_the_pictures(tmp_path, offline):
    folder = RunFolder(tmp_path)
    (log,) = logs.opened(replace(CONFIG, logs="csv and Weights & Biases"), folder)
    log(Previewed(7, (picture(level=0.25),)))
    log.close()
    written = offline_run(folder.path)
    ((step, row),) = wandb_history(wandb_records(written))
    name = "preview 1: zbot at sea"
    assert (step, row[f"{name}|width"], row[f"{name}|height"]) == (7, 32, 16)
    with Image.open(written.parent / "files" / row[f"{name}|path"]) as image:
        assert numpy.asarray(image)[0, 0].tolist() == [64, 64, 64]  # 0.25 * 255 to the nearest


def test_weights_and_biases_without_a_key_is_told_before_the_first_step(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where keys lie
    trainer = new_trainer(brief_flux2(), *tiny_caches(2), replace(CONFIG, logs="csv and Weights & Biases"))
    with (
        torch.inference_mode(),
        pytest.raises(UserError, match=r"cannot begin \(.*wandb login.*=offline"),
    ):
        train(trainer, tmp_path / "loras", tmp_path / "runs", lambda event: None)
    assert not trainer.history.losses


def test_a_log_whose_package_is_missing_is_refused_by_name_before_anything_is_done(tmp_path, monkeypatch):
    trainer = new_trainer(brief_flux2(), *tiny_caches(2), replace(CONFIG, logs="csv and Weights & Biases"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "site-packages" not in place])
    with pytest.raises(UserError, match="needs the package wandb.*pip install wandb"):
        train(trainer, tmp_path / "loras", tmp_path / "runs", lambda event: None)
    assert not list(tmp_path.iterdir())


def test_an_unknown_log_is_refused():
    with pytest.raises(UserError, match="logs is 'csv and MLflow'; choose one of csv, csv and TensorBoard"):
        replace(CONFIG, logs="csv and MLflow")


def test_previews_lie_in_the_run_folder_with_what_was_asked_for(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (0, 100):
        PreviewFiles(folder)(Previewed(step, (picture(level=step / 200), picture("two"))))
    names = ["base_1.png", "base_2.png", *(f"step_{s:06d}_{n}.png" for s in (0, 100) for n in (1, 2))]
    assert sorted(p.name for p in folder.previews.iterdir()) == sorted(names)
    with Image.open(folder.previews / "step_000100_1.png") as image:
        assert json.loads(image.text["flux2_train"]) == {"prompt": "zbot at sea", "seed": 3}
        assert numpy.asarray(image)[0, 0].tolist() == [128, 128, 128]  # 0.5 * 255 to the nearest even


def test_the_contact_sheet_has_a_row_per_prompt_and_a_column_per_step(tmp_path):
    folder, writer = RunFolder(tmp_path), PreviewFiles(RunFolder(tmp_path))
    sizes = []
    for step in range(0, 2000, 100):
        writer(Previewed(step, (picture(level=step / 2000), picture("two", 1.0))))
        with Image.open(folder.contact_sheet) as sheet:
            sizes.append(sheet.size)
            last = sheet.copy()
    column = 32 + sheets.GAP
    assert [w // column for w, _ in sizes] == [min(n, MOST_COLUMNS) + 1 for n in range(1, 21)]  # base and steps
    assert len({h for _, h in sizes}) == 1
    row = last.crop((0, sheets.HEAD + sheets.LINE, last.width, sheets.HEAD + sheets.LINE + 16))
    greys = [row.getpixel((sheets.GAP + 16 + n * column, 12))[0] for n in range(MOST_COLUMNS + 1)]
    assert greys[:2] == [0, 0] and greys[-1] == round(255 * 0.95) and greys[1:] == sorted(set(greys[1:]))


def test_the_plot_shows_validation_and_preservation_in_panels_of_their_own():
    """A panel of their own each: taller by a panel, and nothing where there is nothing."""
    history = History()
    for step in range(10):
        history.add(1.0 - step / 20, 0.0, 0.1, 1e-4, torch.zeros(2, BANDS, dtype=torch.float64))
    plain = loss_plot(history)
    history.validation = {0: 1.2, 10: 0.7}
    with_validation = loss_plot(history)
    history.preservation = [0.01 * n for n in range(10)]
    with_both = loss_plot(history)
    assert plain.size == (800, 480)
    assert plain.height < with_validation.height < with_both.height and with_both.width == 800
