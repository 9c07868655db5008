"""flux2_dataset.json: which pictures are left out or seen more often, and that nothing of it acts unseen."""

import json
from collections import Counter

import pytest
from pictures import picture, read
from PIL import Image

from flux2_train.data import sidecar
from flux2_train.data.cache import EmbedCache, LatentCache
from flux2_train.data.order import epoch_batches
from flux2_train.data.report import steps_per_epoch, summary
from flux2_train.data.samples import Samples
from flux2_train.data.sidecar import Mark, Sidecar
from flux2_train.errors import UserError
from flux2_train.runs import dataset_record
from flux2_train.settings import job
from flux2_train.settings.base import plain


@pytest.fixture
def folder(tmp_path):
    for number, colour in enumerate(("red", "green", "blue", "white")):
        picture(tmp_path / f"{number}.png", colour=colour)
    return tmp_path


def mark(folder, masks=False, **pictures):
    """Write the sidecar: ``_0={"exclude": True}`` is about 0.png."""
    values = {"version": 1, "pictures": {f"{name[1:]}.png": each for name, each in pictures.items()}, "masks": masks}
    (folder / sidecar.NAME).write_text(json.dumps(values))


def seen(dataset) -> Counter:
    """How often an epoch sees each file."""
    epoch = epoch_batches(Samples(EmbedCache(dataset, {}), LatentCache(dataset, {})), 1, 0, 0)
    return Counter(dataset.items[index].path.name for batch in epoch for index in batch)


def test_what_is_left_out_and_seen_more_often(folder):
    before = read(folder)
    mark(folder, _1={"exclude": True}, _2={"repeat": 3})
    after = read(folder, repeats=2)
    assert seen(before) == {"0.png": 1, "1.png": 1, "2.png": 1, "3.png": 1}
    assert seen(after) == {"0.png": 2, "2.png": 6, "3.png": 2} and steps_per_epoch(after, 1) == 10
    text = summary(after).split("\n")
    assert "flux2_dataset.json leaves out 1 image: 1.png" in text
    assert "flux2_dataset.json shows 1 image more often: 2.png x 3" in text
    assert "flux2_dataset" not in summary(before)


def test_it_changes_the_fingerprint_and_an_empty_one_does_not(folder):
    prints = {read(folder).fingerprint}
    mark(folder)
    assert {read(folder).fingerprint} == prints
    for marks in ({"_1": {"exclude": True}}, {"_1": {"repeat": 2}}, {"_2": {"repeat": 2}}, {"_2": {"repeat": 3}}):
        mark(folder, **marks)
        prints.add(read(folder).fingerprint)
    assert len(prints) == 5
    mark(folder, _1={"exclude": False, "repeat": 1})
    assert read(folder).fingerprint in prints


def test_the_caches_keep_their_owner(folder):
    before = read(folder).settings
    mark(folder, _1={"exclude": True})
    assert read(folder).settings == before


def test_a_job_records_it_and_does_the_same_again_whatever_the_folder_says_then(folder):
    mark(folder, _1={"exclude": True}, _2={"repeat": 3})
    first = read(folder)
    written = json.loads(json.dumps(plain(job.Job(first.requests))))
    assert written["dataset"][0]["pictures"] == [["1.png", 0], ["2.png", 3]]
    mark(folder, _0={"exclude": True})
    again = sidecar_reading(job.read(written).dataset[0])
    assert again.fingerprint == first.fingerprint != read(folder).fingerprint and again.notes == first.notes
    (folder / sidecar.NAME).unlink()
    none = json.loads(json.dumps(plain(job.Job(read(folder).requests))))
    mark(folder, _0={"exclude": True})
    assert len(sidecar_reading(job.read(none).dataset[0]).items) == 4


def sidecar_reading(request):
    from flux2_train.data.folder import read_folder

    return read_folder(request)


def test_dataset_json_lists_it_and_says_what_has_changed(folder, tmp_path):
    path = tmp_path / "dataset.json"

    def keep(dataset):
        path.write_text(json.dumps(dataset_record.listed(dataset)))
        return dataset

    keep(read(folder))
    mark(folder, _1={"exclude": True}, _2={"repeat": 3})
    changed = read(folder)
    words = "1 left out (1.png), 1 changed (2.png)"
    assert dataset_record.since(path, changed) == words
    assert dataset_record.difference(path, changed) == f"the data set has changed: {words}"
    listed = json.loads(json.dumps(dataset_record.listed(keep(changed))))
    assert [each.get("repeats", 1) for each in listed] == [1, 3, 1, 1]
    assert [each["image"] for each in listed if each.get("excluded")] == [str(folder / "1.png")]
    mark(folder)
    assert dataset_record.since(path, read(folder)) == "1 put back (1.png), 1 changed (2.png)"
    assert dataset_record.since(path, changed) == "" == dataset_record.since(tmp_path / "none.json", changed)


def test_painted_masks_are_masks_and_no_pictures(folder):
    picture(folder / "masks" / "0.png", caption=None)
    assert len(read(folder, prompt="x").items) == 5  # somebody's own folder of that name
    mark(folder, masks=True)
    found = read(folder)
    assert [item.mask is not None for item in found.items] == [True, False, False, False]
    assert found.requests[0].mask_options.folder == folder / "masks"
    assert any("takes the masks in masks" in note for note in found.notes)
    from flux2_train.settings.dataset_folder import MaskSettings

    Image.new("RGB", (64, 64)).save(folder / "masks" / "extra.png")
    (folder / "other").mkdir()
    other = read(folder, prompt="x", mask_options=MaskSettings(folder / "other"))
    assert not any(item.mask for item in other.items)


def test_excluded_pictures_need_nothing(folder):
    (folder / "1.png").write_bytes(b"broken")
    (folder / "2.txt").unlink()
    mark(folder, _1={"exclude": True}, _2={"exclude": True})
    found = read(folder, bad_files="refuse")
    assert [item.path.name for item in found.items] == ["0.png", "3.png"]


def test_names_in_subfolders_and_of_a_jsonl_file(folder):
    picture(folder / "deep" / "0.png", colour="black")
    rows = [{"image": "deep/0.png", "caption": "x"}, {"image": "0.png", "caption": "y"}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / sidecar.NAME).write_text('{"version": 1, "pictures": {"deep/0.png": {"exclude": true}}}')
    assert len(read(folder).items) == 4
    assert [item.path for item in read(folder / "a.jsonl").items] == [folder / "0.png"]


def test_names_that_are_not_there_are_a_warning_and_all_left_out_is_refused(folder):
    mark(folder, _9={"exclude": True})
    assert "flux2_dataset.json names 1 image that is not there: 9.png" in read(folder).warnings
    mark(folder, **{f"_{n}": {"exclude": True} for n in range(4)})
    with pytest.raises(UserError, match="leaves out every image"):
        read(folder)


def test_an_image_of_that_name_does_not_take_it_for_a_caption(folder):
    picture(folder / "flux2_dataset.png", caption=None)
    mark(folder)
    assert len(read(folder, prompt="x").items) == 5


@pytest.mark.parametrize("text, words", [
    ("[", "is not JSON"), ("[]", "is not of version 1"), ('{"version": 2}', "is not of version 1"),
    ('{"version": 1, "picture": {}}', "'picture'"), ('{"version": 1, "pictures": []}', 'needs "pictures"'),
    ('{"version": 1, "masks": 1}', "true or false"),
    ('{"version": 1, "pictures": {"../a.png": {}}}', "is no name of a picture"),
    ('{"version": 1, "pictures": {"/a.png": {}}}', "is no name of a picture"),
    ('{"version": 1, "pictures": {"a//b.png": {}}}', "is no name of a picture"),
    ('{"version": 1, "pictures": {"C:/b.png": {}}}', "is no name of a picture"),
    ('{"version": 1, "pictures": {"": {}}}', "is no name of a picture"),
    ('{"version": 1, "pictures": {"a.png": 3}}', "a.png needs"),
    ('{"version": 1, "pictures": {"a.png": {"x": 3}}}', "a.png needs"),
    ('{"version": 1, "pictures": {"a.png": {"exclude": 1}}}', "exclude of a.png"),
    ('{"version": 1, "pictures": {"a.png": {"repeat": 0}}}', "repeat of a.png"),
    ('{"version": 1, "pictures": {"a.png": {"repeat": 101}}}', "repeat of a.png"),
    ('{"version": 1, "pictures": {"a.png": {"repeat": true}}}', "repeat of a.png"),
    ("[" * 200_000, "nested"), ("\ufeff\ud800".encode("utf-8", "replace").decode() + "{", "is not JSON"),
])  # fmt: skip
def test_another_form_is_refused_in_words(folder, text, words):
    (folder / sidecar.NAME).write_text(text)
    with pytest.raises(UserError) as error:
        read(folder)
    assert words in str(error.value) and "flux2_dataset" in str(error.value) + str(folder) + sidecar.NAME


def test_what_is_written_is_read_back(tmp_path):
    value = Sidecar({"a.png": Mark(True, 4), "é/b.png": Mark(repeat=2), "c.png": Mark()}, masks=True)
    (tmp_path / sidecar.NAME).write_text(value.text(), encoding="utf-8")
    found = sidecar.read(tmp_path / sidecar.NAME)
    assert found == Sidecar({"a.png": Mark(True, 4), "é/b.png": Mark(repeat=2)}, True)
    assert found.times == (("a.png", 0), ("é/b.png", 2))
