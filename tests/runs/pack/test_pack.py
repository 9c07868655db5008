"""A run that is packed, moved and resumed is the run that stayed; a pack says nothing of the machine that made it."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import folder_paths
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flux2_train.data.folder import read_folder
from flux2_train.errors import UserError
from flux2_train.events import Completed
from flux2_train.host.loading import files
from flux2_train.names import same_file
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.pack import contents, copying
from flux2_train.settings import job as jobs
from flux2_train.settings.dataset_folder import DatasetSettings, MaskSettings
from flux2_train.terminal.main import main
from flux2_train.terminal.options import progress
from flux2_train.terminal.train import in_pack, train_job
from flux2_train.train import processes

PICTURES, CUT, STEPS = 2, 1, 3  # the run is interrupted here after one step, there after another, and ends here
OWNER = "secretname"


def write_pictures(folder, count=PICTURES, size=64):
    for number in range(count):
        path = folder / f"sub{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.radial_gradient("L").rotate(40 * number).resize((size, size)).convert("RGB").save(path)
        path.with_suffix(".json").write_text(json.dumps({"caption": f"zbot {number}", "artist": OWNER}))
    return folder


def write_job(place, pictures, name):
    path = place / f"{name}.json"
    path.write_text(json.dumps({
        "model": {"flavour": "nano"}, "dataset": {"folder": str(pictures), "resolution": 64},
        "training": {"name": name, "steps": STEPS, "rank": 2, "learning_rate": 2e-3, "validation_items": 0,
                     "adapter": {"dropout": 0.2}},
    }))  # fmt: skip
    return path


def interrupted(path, step, how="new"):
    """Train the job at ``path`` until Ctrl-C after that step."""

    def press(event):
        if isinstance(event, Completed) and event.step == step:
            raise KeyboardInterrupt

    with progress(False) as bar, pytest.raises(KeyboardInterrupt):
        train_job(*in_pack(jobs.load(path), path), processes.alone(), bar, how, press)


@contextmanager
def elsewhere(place):
    """ComfyUI's folders of another machine, which has nano's transformer and nothing else."""
    names = folder_paths.folder_names_and_paths
    before = {name: list(names[name][0]) for name in ("diffusion_models", "text_encoders", "vae")}
    before_folders = {name: getattr(folder_paths, f"get_{name}_directory")() for name in ("input", "output", "user")}
    try:
        for name, (folder, *_) in before.items():
            (place / name).mkdir(parents=True)
            names[name][0][:] = [str(place / name)]
            if name == "diffusion_models":
                shutil.copytree(folder, place / name, dirs_exist_ok=True)
        for name in before_folders:
            (place / name).mkdir()
            getattr(folder_paths, f"set_{name}_directory")(str(place / name))
        yield
    finally:
        for name, paths in before.items():
            names[name][0][:] = paths
        for name, path in before_folders.items():
            getattr(folder_paths, f"set_{name}_directory")(path)


def same(one, other):
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def cut(nano, tmp_path_factory):
    """The folder of a run that was interrupted after step CUT; its pictures lie in a folder beside its job."""
    place = tmp_path_factory.mktemp("home")
    interrupted(write_job(place, write_pictures(place / f"photos of {OWNER}"), "cut"), CUT)
    return RunFolder(files.run_folder() / "cut")


@pytest.fixture(scope="module")
def packed(cut, tmp_path_factory):
    """The pack of that run."""
    place = tmp_path_factory.mktemp("packs") / "cut.pack"
    assert main(["pack", "cut", "--to", str(place)]) == 0
    return place


@pytest.mark.long
def test_there_with_the_transformer_alone_and_back_again_it_is_the_run_that_stayed(cut, packed, tmp_path, capsys):
    there = tmp_path / "far" / "moved"
    shutil.copytree(packed, there)
    with elsewhere(tmp_path / "machine"):
        run = RunFolder(there / "runs" / "cut")
        interrupted(run.job, CUT + 1, run)
        for name in ("text_encoders", "vae", "input"):
            assert not list((tmp_path / "machine" / name).iterdir())
    assert run.about()["status"] == "stopped" and (there / "loras" / f"cut_step{CUT + 1}.safetensors").is_file()
    with elsewhere(tmp_path / "third"):
        assert main(["pack", str(run.path), "--to", str(tmp_path / "again")]) == 0  # there, too, without encoders
    there = tmp_path / "again"
    assert str(tmp_path / "far").encode() not in b"".join(p.read_bytes() for p in there.rglob("*.json"))
    capsys.readouterr()
    assert main(["unpack", str(there)]) == 0 and main(["unpack", str(there)]) == 1
    assert "nothing to bring back" in capsys.readouterr().err
    assert main(["resume", "cut"]) == 0
    ours = Path(capsys.readouterr().out.strip())
    assert [each["step"] for each in cut.about()["resumed"]] == [CUT + 1]
    assert main(["train", str(cut.job), "--set", "name=straight"]) == 0
    assert same(ours, Path(capsys.readouterr().out.strip()))


@pytest.mark.long
def test_nothing_in_a_pack_says_where_it_was_made(cut, packed):
    paths = [path for path in packed.rglob("*") if path.is_file()]
    names = {str(path.relative_to(packed)) for path in paths}
    assert {"pack.json", "runs/cut/job.json", "data/0/pictures/sub1/1.png"} <= names
    words = {OWNER, str(cut.path), str(cut.path.parent), str(Path.home()), folder_paths.base_path}
    for path in paths:
        content = path.read_bytes()
        assert not [word for word in words if word.encode() in content], path
    assert not [name for name in names if OWNER in name or name.startswith("/")]


@pytest.mark.long
def test_what_cannot_be_packed_or_read_is_told(cut, packed, tmp_path, capsys):
    def said(*arguments):
        assert main([*map(str, arguments)]) == 1
        return capsys.readouterr().err

    assert "exists already" in said("pack", "cut", "--to", packed)
    photos = next(Path(each.folder) for each in jobs.load(cut.job).dataset)
    assert (
        "lies in the data folder" in said("pack", "cut", "--to", photos / "x.pack") and not (photos / "x.pack").exists()
    )
    with cut.held():
        assert "is being trained right now" in said("pack", "cut", "--to", tmp_path / "a")
    caption = photos / "sub0" / "0.json"
    before = caption.read_text()
    caption.write_text(json.dumps({"caption": "another"}))
    assert "the data set has changed: 1 changed (0.png)" in said("pack", "cut", "--to", tmp_path / "a")
    caption.write_text(before)
    assert not (tmp_path / "a").exists() and not list(tmp_path.iterdir())
    assert "it holds no pack.json" in said("unpack", tmp_path)

    there = tmp_path / "there"
    shutil.copytree(packed, there)
    run = there / "runs" / "cut"
    (there / "data" / "0" / "pictures" / "sub0" / "0.json").write_text(json.dumps({"caption": "new"}))
    assert "1 caption and 0 pictures of the pack" in said("resume", run)
    (there / "data" / "0" / "pictures" / "sub0" / "0.json").write_text(before)
    entry = next((there / "cache").glob("??/*.safetensors"))
    entry.write_bytes(entry.read_bytes()[:-1] + b"\xff")
    assert "1 entry is missing or damaged" in said("resume", run)
    values = json.loads((there / "pack.json").read_text())
    (there / "pack.json").write_text(json.dumps({**values, "transformer": 1}))
    assert "was trained on one of 1: put that file" in said("resume", run)


PLACE = {"folder": "data/0/pictures", "masks": "", "references": []}
VALUES = {
    "name": "a", "places": [PLACE], "prompts": [], "texts": {"": "0" * 32}, "images": {"0" * 32: "1" * 32},
    "transformer": 1, "start": "", "version": 1,
}  # fmt: skip


def test_a_whole_pack_is_read(tmp_path):
    (tmp_path / "pack.json").write_text(json.dumps(VALUES))
    packed = contents.read(tmp_path)
    assert packed.run.path == tmp_path / "runs" / "a" and packed.contents.texts == VALUES["texts"]
    assert contents.around(tmp_path / "runs" / "a" / "job.json").root == tmp_path
    assert contents.around(tmp_path / "elsewhere" / "job.json") is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"version": 2}, "is of version 2; version 1 can be read"),
        ({"name": "../a"}, "leads out of it"),
        ({"places": [{"folder": "/etc", "masks": "", "references": []}]}, "/etc leads out of it"),
        ({"places": [{"folder": "data", "masks": "a/../..", "references": []}]}, "leads out of it"),
        ({"prompts": [["c:/x.png"]]}, "leads out of it"),
        ({"start": "..\\x"}, "leads out of it"),
        ({"texts": {"": "../../x"}}, "no such name"),
        ({"images": {"": 3}}, "is damaged"),
        ({"transformer": "1"}, "is damaged"),
        ({"places": None}, "is damaged"),
    ],
)
def test_a_pack_that_names_other_places_is_refused(tmp_path, change, words):
    (tmp_path / "pack.json").write_text(json.dumps(VALUES | change))
    with pytest.raises(UserError, match=words):
        contents.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 1}', "\0"])
def test_a_damaged_pack_is_named(tmp_path, text):
    (tmp_path / "pack.json").write_text(text)
    with pytest.raises(UserError, match=r"pack.json is damaged|no regular|is no"):
        contents.read(tmp_path)


def packed_again(tmp_path, settings):
    """(data set, the same read from a copy, as bytes everything in the copy)."""
    dataset = read_folder(settings)
    place, request = copying.copy_folder(tmp_path / "pack", "data/0", dataset, 0)
    made = contents.Pack(tmp_path / "pack", contents.Contents("a", (place,)))
    (moved,) = made.job(jobs.Job((request,))).dataset
    written = b"".join(path.read_bytes() for path in (tmp_path / "pack").rglob("*") if path.is_file())
    return dataset, read_folder(moved), written


def test_references_and_masks_come_along_under_their_names(tmp_path):
    photos = write_pictures(tmp_path / "photos", 4)
    for other in ("before", "masks"):
        write_pictures(tmp_path / other, 5)  # one too many, which stays behind
    settings = DatasetSettings(
        photos, resolution=64, references=(tmp_path / "before",), mask_options=MaskSettings(tmp_path / "masks"),
        pictures=(("sub0/0.png", 0), ("sub1/1.png", 3)),
    )  # fmt: skip
    dataset, again, written = packed_again(tmp_path, settings)
    assert len(dataset.items) == 3 and again.fingerprint == dataset.fingerprint and OWNER.encode() not in written
    names = {path.relative_to(tmp_path / "pack" / "data" / "0").as_posix()
             for path in (tmp_path / "pack").rglob("*.png")}  # fmt: skip
    assert names == {f"{part}/sub{n % 2}/{n}.png" for part in ("pictures", "references_0", "masks") for n in (1, 2, 3)}


@pytest.mark.parametrize("named", [True, False])
def test_a_table_of_pictures_is_written_anew_without_its_paths(tmp_path, named):
    photos = write_pictures(tmp_path / "photos", 3)
    rows = [
        {"image": str(photos / "sub0" / "0.png"), "caption": "one", "control": ["sub0/2.png"], "by": OWNER},
        {"image": "sub1/1.png", "caption": ["two", "three"], "control": str(photos / "sub0" / "2.png")},
    ]
    (photos / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = DatasetSettings(photos / "all.jsonl" if named else photos, "jsonl", resolution=64)
    dataset, again, written = packed_again(tmp_path, settings)
    assert len(dataset.items) == 2 and again.fingerprint == dataset.fingerprint
    assert OWNER.encode() not in written and str(tmp_path).encode() not in written


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("a.safetensors", "a.safetensors", True), ("a.safetensors", "/models/x/a.safetensors", True),
        ("sub\\a.safetensors", "a.safetensors", True), ("x/a.safetensors", "y/a.safetensors", False),
        ("a.safetensors", "b.safetensors", False), ("", "", True), ("", "a.safetensors", False), ("", "x/", False),
    ],
)  # fmt: skip
def test_a_file_without_a_folder_may_lie_in_any(one, other, same):
    assert same_file(one, other) is same_file(other, one) is same
