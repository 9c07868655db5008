import torch

from flux2_train.nano import sizes, textgen


def test_weights_are_the_same_bits_everywhere():
    assert textgen.fingerprint(textgen.generate_text_encoder()) == textgen.SHA256


def test_every_weight_is_exact_in_bf16():
    raw = textgen.random_bytes(17, 4096)
    exact = (2 * raw.astype("int64") + 1) / 2**11
    assert torch.equal(textgen.random_matrix(17, 32, 128, 11).double(), torch.from_numpy(exact).view(32, 128))


def test_nothing_writes_to_the_constant_channel():
    weights = textgen.generate_text_encoder()
    assert (weights["model.embed_tokens.weight"][:, 0] == 1).all()
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert (weight[0] == 0).all(), name


def test_streams_differ():
    weights = [w for n, w in textgen.generate_text_encoder().items() if n.endswith("gate_proj.weight")]
    assert len({tuple(w[0].tolist()) for w in weights}) == sizes.LAYERS
