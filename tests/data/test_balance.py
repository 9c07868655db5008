"""Folders that are balanced by weight, and several references of an image in one folder."""

# ruff: noqa: F401, F811 - pytest finds fixtures by the names that are imported, and gives them as arguments

from collections import Counter

import pytest
from pictures import picture, read
from test_weighting import cached, edits, folder, seen

from flux2_train.data.order import epoch_batches, step_count
from flux2_train.errors import UserError
from flux2_train.settings.dataset_folder import DatasetSettings


def test_balanced_folders_come_by_their_weights(folder, tmp_path):
    """8 pictures at weight 1, 2 at weight 3, and 1 that takes no part: of ten an epoch 2.5 and 7.5."""
    for name, count in (("few", 2), ("apart", 1)):
        for number in range(count):
            picture(tmp_path / name / f"{number}.png", colour=(9, number, count))
    plain = read(folder).chained(read(tmp_path / "few")).chained(read(tmp_path / "apart"))
    balanced = read(folder, balance=1.0).chained(read(tmp_path / "few", balance=3.0)).chained(read(tmp_path / "apart"))
    assert Counter(seen(cached(plain), 0).values()) == {1: 11}
    counts = sum((seen(cached(balanced), epoch) for epoch in range(40)), Counter())
    of_folder = [sum(n for i, n in counts.items() if balanced.items[i].source == number) for number in range(3)]
    assert of_folder == [40 * 2, 40 * 8, 40]  # rounded to whole pictures of an epoch
    assert {counts[i] for i in range(8)} == {10} and {counts[i] for i in (8, 9)} == {160}  # each as often as the others
    assert step_count(cached(balanced), 1, 0, 3) == 33
    assert balanced.fingerprint != plain.fingerprint and "balance" not in plain.sources[0].canonical()
    with pytest.raises(UserError, match="balance is on.*set repeats and probability to 1"):
        DatasetSettings(folder, balance=1.0, repeats=2)


def test_a_folder_may_have_a_batch_of_its_own(folder, tmp_path):
    """8 pictures by the run's batch, 6 of another folder by its own 2, times what a step accumulates."""
    for number in range(6):
        picture(tmp_path / "large" / f"{number}.png", colour=(9, number, 1))
    plain, own = (read(folder).chained(read(tmp_path / "large", batch=batch)) for batch in (0, 2))

    def sizes(dataset, **changes):
        order = epoch_batches(cached(dataset), seed=0, epoch=0, **changes)
        return {n: sorted(len(b) for b in order if {dataset.items[i].source for i in b} == {n}) for n in (0, 1)}

    assert sizes(own, batch=4) == {0: [4, 4], 1: [2, 2, 2]}
    assert sizes(own, batch=8, times=2) == {0: [8], 1: [2, 4]}
    assert len(epoch_batches(cached(plain), 4, 0, 0)) == 4 == step_count(cached(plain), 4, 0, 1)
    assert step_count(cached(own), 4, 0, 2) == 10 and step_count(cached(own), 8, 0, 1, times=2) == 3
    assert own.fingerprint != plain.fingerprint and "batch" not in plain.sources[0].canonical()


def test_references_may_be_numbered_in_one_folder(folder, edits, tmp_path):
    before = tmp_path / "numbered"
    for number in range(8):
        for name in (f"{number}_{n}" for n in ((0, 2, 10) if number else (1,))):
            picture(before / f"{name}.png", colour=(number, 7, len(name)))
    picture(before / "3.png")  # its own name counts alone
    picture(before / "9_0.png")
    data = read(folder, references=(before,))
    found = {item.path.stem: [view.path.stem for view in item.references] for item in data.items}
    assert found["1"] == ["1_0", "1_2", "1_10"] and found["0"] == ["0_1"] and found["3"] == ["3"]
    assert [w for w in data.warnings if "belong to no image: 3_0.png" in w or ("3_0" in w and "9_0" in w)]
    for number in range(11):
        picture(before / f"5_{number}.png")
    with pytest.raises(UserError, match=r"At most 10 references of an image can be used; more have 5\.png"):
        read(folder, references=(before,))
