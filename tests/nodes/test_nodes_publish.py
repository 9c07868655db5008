"""Publish LoRA, as a graph calls it."""

import json
import shutil

import pytest
from comfy_api.latest import io
from local_hub import LOGIN, local_hub, log_in
from made_runs import make_run

from flux2_train.host.loading.files import lora_folder, published_folder, run_folder


@pytest.fixture
def publish(pack, comfy_folders):
    """``publish(run, repository)``: the folder and the text of the node, with a run ``pub`` and three LoRAs of it."""
    for folder in (run_folder(), published_folder()):
        shutil.rmtree(folder, ignore_errors=True)
    make_run(run_folder(), "pub"), make_run(run_folder(), "pub_step9")
    for name in ("pub", "pub_step50", "pub_step9"):
        (lora_folder() / f"{name}.safetensors").write_bytes(name.encode())
    node = next(node for node in pack.NODES if node.GET_SCHEMA().node_id == "Flux2PublishLora")

    def executed(run, repository=""):
        clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "1"}})
        output = clone.execute(run, repository)
        return published_folder() / output.args[0].rpartition("/")[2], output.ui["flux2_text"][0]

    yield executed
    shutil.rmtree(run_folder())


@pytest.mark.parametrize("named, run, file", [
    ("pub", "pub", "pub"), ("pub.safetensors", "pub", "pub"), ("pub_step50.safetensors", "pub", "pub_step50"),
    ("pub_step9", "pub_step9", "pub_step9"), ("pub_step9.safetensors", "pub_step9", "pub_step9"),
])  # fmt: skip
def test_a_run_is_named_by_itself_or_by_the_file_it_has_saved(publish, named, run, file):
    folder, text = publish(named)
    assert folder == published_folder() / run and "files" in text
    assert [path.name for path in folder.glob("*.safetensors")] == [f"{file}.safetensors"]


@pytest.mark.parametrize("named, message", [
    ("", "No run is named"), ("nobody", "There is no run nobody"), ("../loras", "is no run's name"),
    ("gone.safetensors", "There is no run gone"), ("pub_step7.safetensors", "is no longer in"),
])  # fmt: skip
def test_a_wrong_name_is_said(publish, named, message):
    with pytest.raises(Exception, match=message):
        publish(named)


def test_it_uploads_privately_and_never_for_other_computers(publish, monkeypatch):
    from comfy.cli_args import args

    with local_hub() as hub:
        log_in(hub, monkeypatch)
        _, text = publish("pub", "alice/pub")
        assert hub.repositories["alice/pub"]["private"] and text.endswith(f"Uploaded: {hub.address}/alice/pub")
        assert LOGIN not in json.dumps(text)
        monkeypatch.setattr(args, "listen", "0.0.0.0")
        with pytest.raises(Exception, match="Other computers can reach this ComfyUI"):
            publish("pub", "alice/other")
        assert list(hub.repositories) == ["alice/pub"]
