"""Results made up for the report, in the form that the verbs give them as plain data; and a real browser to look with."""

import base64
import contextlib
import fcntl
import json
import math
import os
import shutil
import subprocess
import sys

import pytest

TWO_FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
PARTS = {"attention": (("q", "k", "v", "o"), 4), "mlp": (("up", "gate", "down"), 11), "norm": (("1", "2"), 0)}


def wave(*numbers):
    """A number in [0, 1] that depends on these alone."""
    return 0.5 + 0.5 * math.sin(sum((i + 1) * 1.7 * n for i, n in enumerate(numbers)) + 0.3)


def part(name, layer, kind, elements, tasks, shape=None, at=0.0):
    density = [0.2 + 0.35 * wave(at, t) for t in range(tasks)]
    agreement = [max(1, round(elements * math.comb(tasks, n) * 0.3**n * 0.7 ** (tasks - n))) for n in range(tasks)]
    agreement.append(max(0, elements - sum(agreement)))
    total = sum(agreement)
    distance = [0.8 + 0.4 * wave(at, t, 2) for t in range(tasks)]
    erased = [0.3 + 0.2 * wave(at, t, 3) for t in range(tasks)]
    conflict = {"any": 0.9, "conditional": 0.5, "pairwise": 0.3 + 0.2 * wave(at, 9)}
    return {
        "name": name, "layer": layer, "kind": kind, "shape": shape, "tensors": 1, "elements": total,
        "agreement": agreement,
        "catastrophic": agreement[0] / total * (0.5 + wave(at, 5)), "selfish": agreement[1] / total * (0.5 + wave(at, 7)),
        "general": sum(agreement[2:]) / total,
        "density": density, "jaccard_mean": 0.2 + 0.3 * wave(at), "chance_mean": 0.2,
        "norm": [1.0] * tasks, "norm_base": 50.0, "norm_merged": 3.0,
        "drift": [0.01 + 0.03 * wave(at / 4, t) for t in range(tasks)], "unchanged": [0.0] * tasks,
        "cosine_mean": 0.1, "cosine_merged": [0.4] * tasks, "conflict": conflict, "conflict_trimmed": conflict,
        "distance": distance, "erased": erased, "recovered": [d - e for d, e in zip(distance, erased, strict=True)],
    }  # fmt: skip


def spectrum(name, layer, kind, tasks, at):
    positions = [i / 32 for i in range(32)]
    return {
        "name": name, "layer": layer, "kind": kind, "shape": [64, 176],
        "effective_rank": [20 + 20 * wave(at, t) for t in range(tasks)], "stable_rank": [5.0] * tasks,
        "effective_rank_merged": 40.0, "stable_rank_merged": 9.0,
        "values": [math.exp(-p * (2 + 3 * wave(at))) for p in positions],
        "values_merged": [math.exp(-p * 2) for p in positions], "positions": positions,
        "alignment": [wave(at, t) for t in range(tasks)], "alignment_rank": 8, "interference": 10 * wave(at, 4),
    }  # fmt: skip


def localization(layers, names):
    """A localization of a model of so many layers, between tasks of these names."""
    tasks = len(names)
    tensors, cells, spectra = [], [], []
    outside = [("embedding", "model.embed_tokens.weight"), ("head", "lm_head.weight")]
    for place, (kind, name) in enumerate(outside):
        tensors.append(part(name, None, kind, 32000 * 64, tasks, [32000, 64], place))
        cells.append(part(kind, None, kind, 32000 * 64, tasks, None, place))
    for layer in range(layers):
        for k, (kind, (members, width)) in enumerate(PARTS.items()):
            for m, member in enumerate(members):
                name = f"model.layers.{layer}.{kind}.{member}.weight"
                shape = [64, 16 * width] if width else [64]
                tensors.append(part(name, layer, kind, math.prod(shape), tasks, shape, layer / 7 + k + m / 9))
                if width:
                    spectra.append(spectrum(name, layer, kind, tasks, layer / 7 + k + m / 9))
            cells.append(part(f"layer {layer} {kind}", layer, kind, 4096, tasks, None, layer / 7 + k))
    parts = [part(f"layer {layer}", layer, None, 30000, tasks, None, layer / 7) for layer in range(layers)]
    square = [[wave(i * j, i + j) for j in range(tasks)] for i in range(tasks)]
    return {
        "format": 1, "base": "org/base", "models": [f"org/{n}" for n in names], "tasks": list(names),
        "by": "tall_masks", "method": "task_arithmetic", "merged": None, "parameters": {"lambda_": 1.0},
        "lambdas": [0.4] * tasks, "trim": 0.2, "passes": 2, "notes": ["one note"], "not_compared": {"odd": "shape"},
        "inputs": [{"reference": "org/base", "files": [{"file": "m.safetensors", "bytes": 9, "header_sha256": "abc"}]}],
        "model": part("model", None, None, 10**6, tasks),
        "layers": [part("embedding", None, None, 32000, tasks), *parts, part("head", None, None, 32000, tasks)],
        "kinds": [part(k, None, k, 9999, tasks) for k in ("embedding", *PARTS, "head")],
        "cells": cells, "tensors": tensors,
        "matrices": {
            "cosine": [[1.0 if i == j else 0.5 * x - 0.1 for j, x in enumerate(row)] for i, row in enumerate(square)],
            "jaccard": [[1.0 if i == j else 0.4 * x for j, x in enumerate(row)] for i, row in enumerate(square)],
            "overlap": square, "chance": [[0.2] * tasks for _ in names],
            "conflict": square, "conflict_trimmed": [[0.3 * x for x in row] for row in square],
        },
        "spectra": spectra,
        "filters": [
            {
                "name": "conv", "layer": None, "shape": [8, 4, 3, 3],
                "models": [
                    {"model": n, "sparsity": 0.0, "entropy": 0.5, "entropy_ratio": 0.9, "orthogonality": 0.7}
                    for n in ("base", *names)
                ],
            }
        ],
        "lineage": [
            {"task": n, "verdict": "finetuned", "equal": 0.01, "cosine": 0.9999, "relative": 0.02, "median_cosine": 0.999}
            for n in names
        ],
        "choice": [
            {"task": n, "lambda": 0.4, "scores": [[0.2, 0.7], [0.4, 0.8 + 0.1 * wave(i)], [0.6, 0.75]]}
            for i, n in enumerate(names)
        ],
        "behavior": [
            {"task": n, "base": 0.2, "finetuned": 0.9, "merged": 0.6, "masked": 0.88, "interference": 0.28, "erased": 0.02}
            for n in names
        ],
    }  # fmt: skip


@pytest.fixture
def made():
    return localization


@pytest.fixture
def small():
    return localization(4, ["digits", "letters"])


class Browser:
    """Headless Chromium, told what to do through a pipe in its own protocol."""

    def __init__(self, program, folder):
        given, self.ours_out = os.pipe()
        self.ours_in, told = os.pipe()
        high = [
            fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in (given, told)
        ]  # away from 3 and 4, where the browser looks
        start = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        options.append("--remote-debugging-pipe")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                start,
                *map(str, high),
                program,
                *options,
                f"--user-data-dir={folder}",
                "--remote-debugging-pipe",
                "about:blank",
            ],
            pass_fds=high,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (given, told, *high):
            os.close(fd)
        self.number, self.session, self.events, self.rest = 0, None, [], b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        told = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            told["sessionId"] = self.session
        os.write(self.ours_out, json.dumps(told).encode() + b"\0")
        while True:
            message = self.receive()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def receive(self):
        while b"\0" not in self.rest:
            more = os.read(self.ours_in, 1 << 16)
            assert more, "the browser ended"
            self.rest += more
        raw, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(raw)
        if "method" in message:
            self.events.append(message)
        return message

    def wait(self, method):
        while not any(e["method"] == method for e in self.events):
            self.receive()

    def open(self, path, width=1200, height=900, dark=False):
        self.events.clear()
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=path.as_uri())
        self.wait("Page.loadEventFired")

    def run(self, script):
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def hover(self, script, across=0.5, down=0.5):
        """Move the pointer to a place of the element that the script finds; return what the page's tip then says."""
        self.run(f"({script}).scrollIntoView({{block: 'center'}})")
        self.call("Runtime.evaluate", expression=TWO_FRAMES, awaitPromise=True)  # scrolling hides the tip
        box = json.loads(self.run(f"JSON.stringify(({script}).getBoundingClientRect())"))
        x, y = box["x"] + across * box["width"], box["y"] + down * box["height"]
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return self.run("document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent")

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def complaints(self):
        """What the console and the browser said: errors, warnings, refused content."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [e["params"] for e in self.events if e["method"] in kinds]

    def requests(self):
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def close(self):
        self.session = None
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        os.close(self.ours_out)
        os.close(self.ours_in)
        self.process.wait(timeout=20)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here")
    found = Browser(program, tmp_path_factory.mktemp("browser"))
    yield found
    found.close()
