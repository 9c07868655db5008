"""Optimizers by the name of their class: what may be imported, what they do, what they keep, and that runs go on."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import brief_flux2, tiny_caches

from flux2_train.errors import UserError
from flux2_train.runs import checkpoints
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.optimizer import OptimizerSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train import optimizers, packing
from flux2_train.train.other_optimizers import class_of, state_bytes
from flux2_train.train.trainer import Trainer

LR, WD = 0.01, 0.1
MUON = OptimizerSettings("other", other="torch.optim.Muon", weight_decay=WD)


def matrix(rows=6, columns=4, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def stepped(config, before, gradient):
    p = torch.nn.Parameter(before.clone())
    optimizer = optimizers.build(config, [{"params": [p], "lr": LR}])
    p.grad = gradient.clone()
    optimizer.step()
    return p.detach()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_muons_first_step_is_an_orthogonal_matrix(shape):
    """Newton-Schulz with Keller Jordan's numbers, on the gradient divided by its norm (the momentum only scales it)."""
    before, gradient = matrix(*shape), matrix(*shape, seed=1)
    x = gradient.double().numpy() / np.linalg.norm(gradient.double().numpy())
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    expected = before.numpy() * (1 - LR * WD) - LR * np.sqrt(max(1, shape[0] / shape[1])) * x
    found = stepped(MUON, before, gradient).numpy()
    assert np.abs(found - expected).max() < 0.05 * LR  # torch rounds to bf16 five times, and each round grows
    assert np.abs(found - before.numpy()).max() > LR / 10


def test_a_class_that_is_here_under_another_name_gives_the_same_bits():
    ours = stepped(OptimizerSettings(weight_decay=WD, betas=(0.8, 0.9), eps=1e-4), matrix(), matrix(seed=1))
    named = OptimizerSettings("other", other="torch.optim.AdamW", weight_decay=WD, betas=(0.8, 0.9), eps=1e-4)
    assert torch.equal(stepped(named, matrix(), matrix(seed=1)), ours)


def test_arguments_reach_the_class():
    sgd = OptimizerSettings("other", other="torch.optim.SGD", weight_decay=0.0, other_arguments="maximize=true")
    assert torch.allclose(stepped(sgd, matrix(), matrix(seed=1)), matrix() + LR * matrix(seed=1), atol=1e-6)


@pytest.mark.parametrize("name, words", [
    ("os.path.join", "is of no library that may be used: torch.optim, .*FLUX2_OPTIMIZERS"),
    ("torch.optim.lr_scheduler.StepLR", "is of no library"), ("torch.optim.Nothing", "has no class Nothing"),
    ("torch.optim.Optimizer", "is no optimizer"), ("torch.optim.lr_scheduler", "is no optimizer"),
    ("Muon", "is of no library"),
    ("torch.optim.LBFGS", "cannot train this LoRA"), ("torch.optim.SparseAdam", "cannot train this LoRA"),
])  # fmt: skip
def test_what_is_no_optimizer_of_an_allowed_library_is_refused(name, words):
    with pytest.raises(UserError, match=words):
        stepped(OptimizerSettings("other", other=name), matrix(), matrix())


def test_nothing_is_imported_because_a_job_names_it(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="is of no library that may be used"):
        class_of("planted.Adam")
    assert "planted" not in sys.modules


def test_who_starts_the_program_may_allow_more(tmp_path, monkeypatch):
    (tmp_path / "allowed_here.py").write_text("import torch\nclass Own(torch.optim.SGD): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FLUX2_OPTIMIZERS", "something_else, allowed_here")
    own = OptimizerSettings("other", other="allowed_here.Own", weight_decay=0.0)
    assert torch.allclose(stepped(own, matrix(), matrix(seed=1)), matrix() - LR * matrix(seed=1), atol=1e-6)


def test_a_missing_library_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match="needs pytorch_optimizer.*pip install pytorch_optimizer"):
        class_of("pytorch_optimizer.CAME")


@pytest.mark.parametrize("arguments, words", [
    ("nonsense=1", "torch.optim.Muon has no nonsense; it takes lr, weight_decay, momentum"),
    ("ns_steps=200", "cannot train this LoRA .Number of steps"), ("momentum", "takes pairs such as momentum=0.9"),
    ("lr=0.5", "other_arguments has lr, which has a setting of its own"),
])  # fmt: skip
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        stepped(replace(MUON, other_arguments=arguments), matrix(), matrix())
    with pytest.raises(UserError, match="'other' names none"):
        OptimizerSettings("other")


def test_a_vector_is_refused_in_muons_own_words():
    config = TrainingSettings(rank=2, adapter=AdapterSettings(dora=True), optimizer=MUON)
    with pytest.raises(UserError, match="Muon only supports 2D parameters"):
        Trainer(brief_flux2(), *tiny_caches(), config)


@pytest.mark.parametrize("name, bytes_of", [
    ("torch.optim.Muon", lambda p: 4 * p.numel()), ("torch.optim.AdamW", lambda p: 8 * p.numel() + 4),
    ("torch.optim.SGD", lambda p: 0), ("transformers.Adafactor", lambda p: 4 * sum(p.shape)),
])  # fmt: skip
def test_what_it_keeps_is_measured(name, bytes_of):
    parameters = [torch.nn.Parameter(matrix(*shape)) for shape in ((6, 4), (6, 4), (4, 6), (3, 9))]
    arguments = "relative_step=false" if "Ada" in name and "trans" in name else ""
    config = OptimizerSettings("other", other=name, other_arguments=arguments)
    found, expected = state_bytes(config, parameters), sum(map(bytes_of, parameters))
    assert found == pytest.approx(expected, abs=16)


@pytest.mark.long
@pytest.mark.parametrize("options", [
    MUON, OptimizerSettings("other", other="torch.optim.NAdam"),
    OptimizerSettings("other", other="pytorch_optimizer.CAME"),
    OptimizerSettings("other", other="pytorch_optimizer.StableAdamW"),
], ids=lambda options: options.other)  # fmt: skip
def test_a_run_that_goes_on_has_the_bits_of_one_that_was_not_cut(options, tmp_path):
    if options.other.startswith("pytorch_optimizer"):
        pytest.importorskip("pytorch_optimizer")
    model, (embeds, latents) = brief_flux2(), tiny_caches()
    config = TrainingSettings(steps=5, rank=2, learning_rate=1e-3, validation_items=0, optimizer=options)

    def trained(trainer, until):
        with torch.inference_mode():
            for event in trainer.run():
                if getattr(event, "step", 0) == until and type(event).__name__ == "Completed":
                    return trainer
        return trainer

    whole = trained(Trainer(model, embeds, latents, config), 5)
    cut = trained(Trainer(model, embeds, latents, config), 3)
    about = checkpoints.About(3, 5, {}, "", 1)
    path = checkpoints.Snapshot.of(about, cut.state_dict()).write(tmp_path)
    rest = Trainer(model, embeds, latents, config)
    header, tensors = packing.pack(cut.state_dict())
    rest.load_state_dict(packing.unpack(header, tensors))
    assert path.is_file()
    trained(rest, 5)
    pairs = zip(whole.adapters.trainable(), rest.adapters.trainable(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.long
def test_settings_name_it_without_importing_torch():
    code = "import sys; from flux2_train.settings.optimizer import OptimizerSettings as O; "
    code += "O('other', other='torch.optim.Muon'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
