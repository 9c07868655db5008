"""What the routes of the browser of pictures refuse: links, other places, other types, a thousand bad requests."""

import json
import random
import string
import time

from data_routes import DATA, page, painted, write
from pictures import picture

from flux2_train.data import sidecar


def test_links_are_not_written_through(post, place, tmp_path):
    target = tmp_path / "target.txt"
    target.write_text("kept")
    (place / "0.txt").unlink()
    (place / "0.txt").symlink_to(target)
    assert "0.png" in write(post, place, {"name": "0.png", "text": "x", "etag": ""})[1]["wrong"]
    (place / "masks").mkdir()
    (place / "masks" / "1.png").symlink_to(target)
    (place / sidecar.NAME).symlink_to(target)
    usual = {"was": {}, "now": {"exclude": True}}
    assert post("marks", {"settings": {"folder": place.name}, "marks": {"1.png": usual}})[0] == 400
    body = {"settings": {"folder": place.name}, "name": "1.png", "png": painted((128, 64)), "etag": ""}
    assert post("mask", body)[0] == 400
    assert target.read_text() == "kept"


def test_other_places_are_refused_where_the_server_listens_to_others(post, get, tmp_path, monkeypatch):
    from comfy.cli_args import args

    picture(tmp_path / "a.png")
    inside = {"folder": str(tmp_path)}
    assert post("pictures", {"settings": inside, "start": 0, "count": 1})[0] == 200
    monkeypatch.setattr(args, "listen", "0.0.0.0")
    body = {"settings": inside, "captions": [{"name": "a.png", "text": "x", "etag": ""}], "start": 0, "count": 1,
            "marks": {"a.png": {"was": {}, "now": {}}}, "name": "a.png", "png": None}  # fmt: skip
    for what in ("pictures", "captions", "marks", "mask"):
        status, answer = post(what, body)
        assert status == 400 and "lies outside" in answer["error"]
    for what in ("thumbnail", "mask"):
        assert get(what, folder=str(tmp_path), name="a.png")[0] == 400
    assert (tmp_path / "a.txt").read_text() == "a [trigger] thing" and len(list(tmp_path.iterdir())) == 2


def test_only_json_of_the_right_type_changes_anything(client, routes, place):
    async def work(opened):
        body = json.dumps(
            {"settings": {"folder": place.name}, "marks": {"0.png": {"was": {}, "now": {"exclude": True}}}}
        )
        plain = await opened.post(f"{DATA}/marks", data=body, headers={"Content-Type": "text/plain"})
        form = await opened.post(f"{DATA}/marks", data={"settings": "x"})
        return plain.status, form.status

    assert client(work) == (400, 400) and not (place / sidecar.NAME).exists()


BAD = ["", ".", "..", "../x", "/etc/passwd", "a/../b", "a\0b", "\\\\host\\share", "C:\\x", "x" * 5000, "\u202e.png",
       "~root", "<img src=x onerror=alert(1)>.png", "0.txt", sidecar.NAME, "con", "0.png/", "./0.png", "masks/../0.png",
       3, None, True, [], {}, 1e308, -1, 10**30, [["a"]], {"a": {"b": []}}, "data:image/png;base64,AAAA",
       "\ud800"]  # fmt: skip


def drawn(rng, names):
    """A request of the right shape with wrong values in it, or of no shape at all."""

    def value(depth=0):
        kind = rng.randrange(8)
        if kind < 4:
            return rng.choice(BAD)
        if kind < 6:
            return "".join(rng.choice(string.printable) for _ in range(rng.randrange(30)))
        return (
            [value(depth + 1)]
            if kind == 6 and depth < 3
            else {str(rng.choice(BAD)): value(depth + 1)}
            if depth < 3
            else 0
        )

    def maybe(good):
        return good if rng.random() < 0.6 else value()

    settings = maybe({"folder": maybe(names["folder"]), "resolution": maybe(64), "crop_options": maybe({}),
                      "mask_options": maybe({"folder": maybe("")}), "references": maybe("")})  # fmt: skip
    entry = {"name": maybe("0.png"), "text": value(), "etag": value()}
    return {"settings": settings, "start": maybe(0), "count": maybe(10), "captions": maybe([maybe(entry)]),
            "marks": maybe({str(maybe("0.png")): maybe({"was": maybe({}), "now": value()})}),
            "name": maybe("0.png"), "png": value(), "etag": value(), "texts": maybe([value()]), "flavour": value(),
            "clear": value()}  # fmt: skip


def test_a_thousand_bad_paths_and_bodies_change_nothing_and_end_in_words(client, routes, place, full_size):
    outside = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    rng, worst = random.Random(1), []
    posts = [path for method, path, _ in routes if method == "POST"]

    async def work(opened):
        for _ in range(1000):
            body = drawn(rng, {"folder": place.name})
            text = json.dumps(body) if rng.random() < 0.9 else json.dumps(body)[: rng.randrange(80)] or "["
            began = time.monotonic()
            answer = await opened.post(
                rng.choice(posts), data=text.encode(), headers={"Content-Type": "application/json"}
            )
            worst.append((time.monotonic() - began, answer.status, text))
            found = await answer.json()
            assert answer.status == 200 or found["error"], text
            assert answer.status in (200, 400, 409), text
        for bad in BAD:
            for name in ("thumbnail", "mask"):
                own = {"folder": place.name, "name": "0.png"}
                for query in ({"folder": str(bad)}, {"name": str(bad)}, {"masks": str(bad), "side": str(bad)}):
                    clean = {key: text.encode("utf-8", "replace").decode() for key, text in (own | query).items()}
                    answer = await opened.get(f"{DATA}/{name}", params=clean)
                    assert answer.status in (200, 400), (name, query)

    client(work)
    assert max(worst)[0] < 5
    ours = {sidecar.NAME, "0.txt"}  # what a request that happened to be right may write
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and "masks" not in path.parts}
    assert {path: data for path, data in after.items() if path.name not in ours} == {
        path: data for path, data in outside.items() if path.name not in ours
    }
    sidecar.read(place / sidecar.NAME)  # and what was written can be read


def test_a_page_of_five_thousand_pictures_is_there_at_once(post, place, full_size):
    """The first screen within two seconds; with ``--all`` there are 5,000 pictures, else 1,000."""
    data, count = (place / "0.png").read_bytes(), 5000 if full_size else 1000
    for number in range(count):
        (place / f"many{number:05d}.png").write_bytes(data)
    began = time.process_time()
    found = page(post, place, 0, 60)
    assert found["total"] == count + 3 and len(found["pictures"]) == 60
    assert time.process_time() - began < 2
