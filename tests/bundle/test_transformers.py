"""A tiny transformers model with tied weights, switched in place, against from_pretrained of the unpacked folder."""

import pytest

from weightsmith import Bundle, pack, unpack

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and two tasks as save_pretrained writes them: the head is the embedding, and not stored."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=40, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(root / "base")
    for name in "ab":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(root / name)
    return root


@pytest.mark.parametrize("encoding", ["tall_masks", "lossless"])
def test_switching_is_loading(models, tmp_path, encoding):
    bundle = pack(encoding, base=models / "base", models=[models / "a", models / "b"], out=tmp_path / "bundle").out
    unpack(bundle, tmp_path / "all")
    resident = transformers.GPT2LMHeadModel.from_pretrained(models / "base").eval()
    tokens = torch.arange(8)[None]
    opened = Bundle(bundle)
    for task in "aba":
        opened.load_into(resident, task)
        loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "all" / task).eval()
        assert resident.lm_head.weight.data_ptr() == resident.transformer.wte.weight.data_ptr()
        state = loaded.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in resident.state_dict().items())
        with torch.no_grad():
            assert torch.equal(resident(tokens).logits, loaded(tokens).logits)
