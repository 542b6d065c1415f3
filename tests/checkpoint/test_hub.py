from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from weightsmith.checkpoint import hub
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.errors import ResourceError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# A socket that is opened ends the program: offline means none.
SCRIPT = """
import socket, sys
def refuse(*a, **k):
    sys.exit("a socket was opened")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.errors import WeightsmithError
try:
    c = open_checkpoint(sys.argv[1])
    print(c.revision, sorted(c.tensors), c.reference, c.folder.name)
except WeightsmithError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def cache(tmp_path, write_safetensors):
    """A cache as the hub's library keeps it: blobs, refs, and a snapshot of links."""
    model = tmp_path / "hub" / "models--org--name"
    snapshot = model / "snapshots" / COMMIT
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    snapshot.mkdir(parents=True)
    write_safetensors(model / "blobs" / "aaaa", {"w": np.zeros(3, np.float32)})
    (model / "blobs" / "bbbb").write_text('{"model_type": "x"}')
    (snapshot / "model.safetensors").symlink_to("../../blobs/aaaa")
    (snapshot / "config.json").symlink_to("../../blobs/bbbb")
    (model / "refs" / "main").write_text(COMMIT)
    (model / "refs" / "v1.0").write_text(COMMIT)
    return tmp_path


def offline(cache: Path, reference: str) -> str:
    environment = {
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "PATH": "",
        "HOME": str(cache),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, reference],
        env=environment,
        cwd=cache,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("reference", ["org/name", "hub:org/name", "org/name@v1.0", f"org/name@{COMMIT}"])
def test_cached_model_offline(cache, reference):
    assert offline(cache, reference) == f"{COMMIT} ['w'] {reference} {COMMIT}"


@pytest.mark.parametrize("reference", ["org/other", "org/name@v2.0", "hub:org/other"])
def test_absent_model_offline(cache, reference):
    text = offline(cache, reference)
    assert text.startswith(f"ResourceError model '{reference.removeprefix('hub:')}' cannot be had from the hub")
    assert "Check the name" in text


def test_a_local_folder_of_that_name_comes_first(cache, write_safetensors):
    (cache / "org" / "name").mkdir(parents=True)
    write_safetensors(cache / "org" / "name" / "model.safetensors", {"local": np.zeros(1, np.float32)})
    assert offline(cache, "org/name") == "None ['local'] org/name name"
    assert COMMIT in offline(cache, "hub:org/name")
    text = offline(cache, "org/nam")
    assert text.startswith("ArgumentError")
    assert "did you mean 'name'?" in text
    assert "hub:org/nam" in text


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ResourceError, match=r"weightsmith\[hf\]"):
        open_checkpoint("org/name")


def test_any_failure_of_the_network_is_a_resource_error(monkeypatch):
    class Odd(Exception):
        pass

    def fail(*_, **__):
        raise Odd("no route\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ResourceError, match=r"Odd: no route\. Check") as caught:
        hub.fetch("org/name", "main")
    assert "second line" not in str(caught.value)


def test_patterns_leave_out_other_frameworks():
    from huggingface_hub.utils import filter_repo_objects

    files = [
        "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "config.json", "merges.txt",
        "tokenizer.model", "chat_template.jinja", "tf_model.h5", "modeling_x.py", "model.onnx",
    ]  # fmt: skip
    assert list(filter_repo_objects(files, allow_patterns=list(hub.PATTERNS))) == files[:7]


def test_importing_the_package_does_not_import_the_library():
    assert importlib.util.find_spec("huggingface_hub")
    code = (
        "import sys, weightsmith.checkpoint.read\n"
        "print({'torch', 'huggingface_hub', 'peft', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
