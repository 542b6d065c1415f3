"""A model in memory, switched from task to task in place: the bytes of the unpacked folder, and only what differs written."""

import numpy as np
import pytest

from weightsmith import Bundle, WeightsmithError, unpack

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):
    """The modules whose parameters the family's tensors are called after."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(300, 256)
        layer = torch.nn.Module()
        layer.mlp = torch.nn.Module()
        layer.mlp.up_proj = torch.nn.Linear(7, 33, bias=False)
        self.model.layers = torch.nn.ModuleList([layer])
        self.model.norm = torch.nn.Module()
        self.model.norm.weight = torch.nn.Parameter(torch.zeros(7))
        self.frozen = torch.nn.Parameter(torch.zeros(3, 4))
        self.register_buffer("ids", torch.zeros(9, dtype=torch.int64))


def same(module, folder, load_arrays):
    state = module.state_dict()
    return all(state[n].numpy().tobytes() == a.tobytes() for n, a in load_arrays(folder).items())


@pytest.mark.parametrize("encoding", ["tall_masks", "compeft", "lossless", "low_rank"])
def test_switching(pack_all, tmp_path, load_arrays, tasks, encoding):
    path = pack_all(encoding)
    unpack(path, tmp_path / "all")
    bundle, net = Bundle(path), Net()
    held = {n: t.data_ptr() for n, t in net.state_dict().items()}
    everything = sum(a.nbytes for a in tasks["a"].values())
    changed = everything - tasks["a"]["frozen"].nbytes - tasks["a"]["ids"].nbytes
    assert bundle.load_into(net, "a") == everything
    assert same(net, tmp_path / "all" / "a", load_arrays)
    for task in "bca":
        assert bundle.load_into(net, task) == changed
        assert same(net, tmp_path / "all" / task, load_arrays)
    assert {n: t.data_ptr() for n, t in net.state_dict().items()} == held


def test_other_dtypes_are_rounded(pack_all, read_task):
    path = pack_all("compeft")
    net = Net().to(torch.bfloat16)
    Bundle(path).load_into(net, "b")
    name = "model.embed_tokens.weight"
    wanted = torch.from_numpy(read_task(path, "b")[name].copy()).to(torch.bfloat16)
    assert torch.equal(net.state_dict()[name], wanted)
    assert net.ids.tolist() == list(range(9))


def test_a_module_that_does_not_fit(pack_all):
    bundle, net = Bundle(pack_all("compeft")), Net()
    net.frozen = torch.nn.Parameter(torch.zeros(3, 5))
    net.more = torch.nn.Parameter(torch.zeros(1))
    del net.model.norm
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(WeightsmithError) as error:
        bundle.load_into(net, "a")
    for told in ("'frozen' has shape (3, 4)", "'more' of the module", "'model.norm.weight' of the task"):
        assert told in str(error.value)
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())


def test_after_damage_everything_is_written_again(pack_all, tasks):
    path = pack_all("lossless")
    bundle, net = Bundle(path), Net()
    bundle.load_into(net, "a")
    part = next((path / "tasks").glob("*-b/part.safetensors"))
    raw = part.read_bytes()
    bundle.checkpoint("b")
    part.write_bytes(raw[:-3000])
    with pytest.raises(WeightsmithError, match="missing"):
        bundle.load_into(net, "b")
    assert bundle.load_into(net, "c") == sum(a.nbytes for a in tasks["c"].values())


def test_single_tensors(pack_all, tasks):
    bundle = Bundle(pack_all("lossless"))
    assert bundle.tasks == ("a", "b", "c")
    for name, array in tasks["b"].items():
        found = bundle.tensor("b", name)
        assert np.array_equal(found, array)
        assert found.dtype == array.dtype
    with pytest.raises(WeightsmithError, match=r"has no tensor 'model\.norm'"):
        bundle.tensor("b", "model.norm")
