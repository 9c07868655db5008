"""The routes of the browser of pictures, asked over HTTP in a web server of its own."""

import base64
import io
import json
import time

import pytest
from data_routes import page, painted, write
from pictures import gradient, picture, read
from PIL import Image

from flux2_train.data import sidecar
from flux2_train.host.loading import places
from flux2_train.host.loading.files import run_folder


def test_pictures_are_listed_with_what_is_trained_on(post, place):
    (place / "1.txt").unlink()
    (place / "2.txt").write_text("")
    (place / "3.png").write_bytes(b"broken")
    (place / sidecar.NAME).write_text('{"version": 1, "pictures": {"0.png": {"exclude": true, "repeat": 2}}}')
    found = page(post, place)
    assert found["total"] == 4 and found["folder"] == place.name and not found["fixed"]
    first, second, third, broken = found["pictures"]
    assert (first["name"], first["width"], first["exclude"], first["repeat"]) == ("0.png", 64, True, 2)
    assert first["caption"] == "a [trigger] number 0" and not first["warnings"] and len(first["etag"]) == 32
    assert second["caption"] is None and "no caption" in second["warnings"]
    assert "the caption is empty" in third["warnings"] and third["height"] == 128
    assert broken["warnings"] == ["no caption", "cannot be read as an image"] and broken["width"] == 0
    assert [each["name"] for each in page(post, place, 1, 2)["pictures"]] == ["1.png", "2.png"]


@pytest.mark.parametrize("options", [
    {}, {"crop_aspect": "square"}, {"crop_style": "random", "crop_aspect": "square", "crops": 2, "seed": 3},
    {"crop": False}, {"resolutions": "64, 32", "crop_aspect": "square"},
])  # fmt: skip
def test_boxes_and_sizes_are_those_of_the_data_set(post, place, options):
    from flux2_train.settings.base import read as read_settings
    from flux2_train.settings.crops import CropSettings

    items = read(place, crop_options=read_settings(CropSettings, options)).items
    for each in page(post, place, crop_options=options)["pictures"]:
        own = [item for item in items if item.path.name == each["name"]]
        sides = (each["width"], each["height"]) * 2
        assert [[value * side for value, side in zip(box, sides, strict=True)] for box in each["boxes"]] == [
            pytest.approx(item.view.crop.box, abs=0.01) for item in own
        ]
        assert each["sizes"] == list(dict.fromkeys(f"{item.size[0]} x {item.size[1]}" for item in own))


def test_captions_are_written_whole_and_only_where_nobody_else_wrote(post, place):
    before = {each["name"]: each for each in page(post, place)["pictures"]}
    (place / "1.txt").write_text("somebody else")
    names = ("0.png", "1.png")
    new = [{"name": name, "text": f"new {name}\nsecond", "etag": before[name]["etag"]} for name in names]
    status, answer = write(post, place, *new, {"name": "9.png", "text": "", "etag": ""})
    assert status == 200 and list(answer["written"]) == ["0.png"] and list(answer["wrong"]) == ["9.png"]
    assert answer["changed"]["1.png"]["caption"] == "somebody else"
    assert (place / "0.txt").read_text() == "new 0.png\nsecond" and (place / "1.txt").read_text() == "somebody else"
    now = {each["name"]: each for each in page(post, place)["pictures"]}
    assert now["0.png"]["etag"] == answer["written"]["0.png"]
    assert now["1.png"]["etag"] == answer["changed"]["1.png"]["etag"]
    assert sorted(path.name for path in place.iterdir()) == sorted(f"{n}.{s}" for n in range(3) for s in ("png", "txt"))


def test_a_caption_that_was_not_there_is_made_and_removed_again(post, place):
    (place / "0.txt").unlink()
    _, answer = write(post, place, {"name": "0.png", "text": "made", "etag": ""})
    assert (place / "0.txt").read_text() == "made"
    write(post, place, {"name": "0.png", "text": None, "etag": answer["written"]["0.png"]})
    assert not (place / "0.txt").exists()


def test_the_file_that_holds_the_caption_is_the_one_that_is_written(post, place):
    for suffix, content in ((".caption", "old"), (".json", '{"caption": ["a", "b"], "other": [1]}')):
        (place / "0.txt").unlink(missing_ok=True)
        path = place / f"0{suffix}"
        path.write_text(content)
        seen = page(post, place)["pictures"][0]
        write(post, place, {"name": "0.png", "text": "new", "etag": seen["etag"]})
        assert path.read_text() in ("new", '{"caption": "new", "other": [1]}\n') and not (place / "0.txt").exists()
        path.unlink()


def test_captions_from_elsewhere_are_shown_and_not_written(post, place):
    for settings, caption in (({"captions": "file name"}, "0"), ({"captions": "one prompt", "prompt": "p"}, "p")):
        found = page(post, place, **settings)
        assert found["fixed"] and found["pictures"][0]["caption"] == caption
        status, answer = write(post, place, {"name": "0.png", "text": "x", "etag": ""}, **settings)
        assert status == 400 and "captions from" in answer["error"]
    (place / "a.jsonl").write_text('{"image": "0.png", "caption": "row"}')
    found = page(post, place, captions="jsonl")
    assert found["total"] == 1 and found["pictures"][0]["caption"] == "row" and ".jsonl" in found["fixed"]


def test_marks_are_written_and_conflicts_are_said(post, place):
    usual = {"exclude": False, "repeat": 1}
    out = {"0.png": {"was": usual, "now": {"exclude": True, "repeat": 1}},
           "1.png": {"was": usual, "now": {"exclude": False, "repeat": 3}}}  # fmt: skip
    assert post("marks", {"settings": {"folder": place.name}, "marks": out}) == (200, {})
    assert [item.path.name for item in read(place).items] == ["1.png", "2.png"] and read(place).items[0].repeats == 3
    status, answer = post("marks", {"settings": {"folder": place.name}, "marks": out})
    assert status == 409 and answer["now"]["marks"]["0.png"] == {"exclude": True, "repeat": 1}
    back = {name: {"was": each["now"], "now": each["was"]} for name, each in out.items()}
    assert post("marks", {"settings": {"folder": place.name}, "marks": back})[0] == 200
    assert len(read(place).items) == 3


def test_a_mask_is_painted_seen_and_removed(post, get, place, tmp_path):
    body = {"settings": {"folder": place.name}, "name": "1.png", "png": painted((64, 32)), "etag": ""}
    status, answer = post("mask", body)
    assert status == 200 and (place / "masks" / "1.png").exists()
    dataset = read(place)
    assert [item.mask is not None for item in dataset.items] == [False, True, False]
    status, headers, data = get("mask", folder=place.name, name="1.png")
    assert status == 200 and headers["X-Flux2-Etag"] == answer["etag"]
    assert Image.open(io.BytesIO(data)).mode == "L"
    assert page(post, place)["pictures"][1]["mask"] and page(post, place)["total"] == 3
    assert post("mask", body)[0] == 409  # it is another one by now
    assert post("mask", {**body, "etag": answer["etag"], "png": painted((64, 64))})[0] == 400  # another shape
    assert post("mask", {**body, "etag": answer["etag"], "png": base64.b64encode(b"GIF89a").decode()})[0] == 400
    assert post("mask", {**body, "etag": answer["etag"], "png": None})[1] == {"etag": ""}
    assert not (place / "masks" / "1.png").exists() and get("mask", folder=place.name, name="1.png")[2] == b""


def test_a_mask_goes_where_mask_options_says(post, place):
    (place.parent / f"{place.name}_masks").mkdir()
    settings = {"folder": place.name, "mask_options": {"folder": f"{place.name}_masks"}}
    body = {"settings": settings, "name": "0.png", "png": painted((64, 64)), "etag": ""}
    assert post("mask", body)[0] == 200
    assert (place.parent / f"{place.name}_masks" / "0.png").exists() and not (place / sidecar.NAME).exists()


def test_thumbnails_are_small_upright_and_kept(get, place):
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient((640, 320)).save(place / "wide.jpg", exif=exif)
    for side in (256, 1024):
        status, headers, data = get("thumbnail", folder=place.name, name="wide.jpg", side=side)
        with Image.open(io.BytesIO(data)) as small:
            assert status == 200 and small.size == (min(side, 640) // 2, min(side, 640)) and small.format == "JPEG"
        assert headers["X-Content-Type-Options"] == "nosniff"
    (place / "wide.jpg").write_bytes(b"broken")
    assert get("thumbnail", folder=place.name, name="wide.jpg")[0] == 400
    assert get("thumbnail", folder=place.name, name="0.png", side=9999)[0] == 400


def test_old_thumbnails_go_first(tmp_path):
    from flux2_train.data.curate import thumbnails

    paths = [picture(tmp_path / f"{n}.png", caption=None) for n in range(3)]
    sizes = [len(thumbnails.thumbnail(path, 256, tmp_path / "kept")) for path in paths]
    time.sleep(0.02)
    thumbnails.thumbnail(paths[0], 256, tmp_path / "kept")  # was seen last
    assert thumbnails.bound(tmp_path / "kept", sizes[0] + sizes[1]) == 1
    assert len(list((tmp_path / "kept").glob("??/*.jpg"))) == 2


def test_verdicts_of_the_newest_run_stand_on_the_pictures(post, place):
    from flux2_train.evaluate.verdicts import MISLABELLED, Judged
    from flux2_train.events import ImageLoss
    from flux2_train.runs.writers.image_files import _write_judged

    def ran(name, verdict):
        folder = run_folder() / name
        folder.mkdir(parents=True)
        loss = ImageLoss(place / "1.png", False, (1.0,) * 4, (("2.png", 0.5), ("0.png", 0.25)))
        _write_judged(folder / "images.csv", [Judged(loss, 1, 1, 1, 0, 0, 0, verdict, "because")])

    ran(f"{place.name}_old", "not learnable")
    time.sleep(0.02)
    ran(f"{place.name}_new", MISLABELLED)
    found = page(post, place)
    assert found["run"] == f"{place.name}_new"
    first, second = found["pictures"][:2]
    assert "verdict" not in first
    assert (second["verdict"], second["reason"], second["better"]) == (MISLABELLED, "because", "0.png")


def test_tokens_are_counted_by_the_tokenizer_or_else_words(post):
    status, found = post("tokens", {"flavour": "klein-4b", "texts": ["", "a robot on a beach"]})
    assert status == 200 and found["what"] == "tokens" and found["counts"][1] - found["counts"][0] == 5
    assert post("tokens", {"flavour": "dev", "texts": ["a b", ""]}) == (200, {"counts": [2, 0], "what": "words"})
    assert post("tokens", {"flavour": "dev", "texts": ["a"] * 1001})[0] == 400


def test_folders_to_choose_from(get, place):
    picture(place / "deep" / "0.png")
    status, _, data = get("folders")
    found = {each["name"]: each["pictures"] for each in json.loads(data)["folders"]}
    assert status == 200 and found[place.name] == 3 and found[f"{place.name}/deep"] == 1


def test_what_no_data_set_uses_is_counted_and_cleared(get, post):
    import torch

    from flux2_train.data.store import Store
    from flux2_train.host.loading.files import cache_folder

    store = Store(cache_folder())
    store.prune()
    store.write("ab" * 16, torch.ones(10))
    store.flush()
    (found,) = [each for each in json.loads(get("cache")[2])["caches"] if each["place"] == "user folder"]
    assert found["unused"] == 1 and found["unused_bytes"] > 40
    status, answer = post("cache", {"clear": "unused"})
    assert status == 200 and answer["caches"][0]["unused"] == 0 and "ab" * 16 not in str(list(store.entries()))
    assert post("cache", {"clear": "all"})[0] == 400


def test_the_packs_own_example_is_shown_and_stays(post):
    from pathlib import Path

    robot = places.SHIPPED / "robot"
    found = page(post, Path("robot"))
    assert found["total"] == len(list(robot.glob("*.png"))) and found["readonly"]
    name = found["pictures"][0]["name"]
    body = {"settings": {"folder": "robot"}, "captions": [{"name": name, "text": "x", "etag": ""}],
            "marks": {name: {"was": {}, "now": {"exclude": True}}}, "name": name, "png": None}  # fmt: skip
    for what in ("captions", "marks", "mask"):
        status, answer = post(what, body)
        assert status == 400 and "stays as it is" in answer["error"]
    assert not (robot / sidecar.NAME).exists()
