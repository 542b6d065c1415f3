"""The house itself: arrows of imports, sizes, documentation, the README's promises."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

import weightsmith
from weightsmith.compress import ENCODINGS
from weightsmith.localize import LOCALIZERS
from weightsmith.merge import METHODS

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "weightsmith"
ROWS = (
    ("errors", "arguments", "display", "strict_yaml"),
    ("tensor", "checkpoint"),
    ("matrices", "method", "encoding", "budget", "device"),
    ("merge", "compress", "localize"),
    ("recipe", "engine"),
    ("vocabulary", "plan"),
    ("dialect", "chain", "produce", "record", "run"),
    ("verify", "distance", "compare", "inspection", "agreement", "localization", "bundle", "soup", "align", "adapt"),
    ("report",),
    ("cli",),
    ("demo",),
)
LONGEST_MODULE, LONGEST_METHOD = 400, 150


def room_of(module):
    """weightsmith.tensor.loops -> tensor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def modules():
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path):
    """Every weightsmith module that a file imports when it runs, wherever in it the import stands."""
    known = {name for name, _ in modules()}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        yield from (n for n in names if n in known and n != "weightsmith")


def test_every_room_has_a_row():
    listed = {room for row in ROWS for room in row}
    assert {room_of(m) for m, _ in modules()} - {"", "__main__"} == listed


def test_imports_point_down():
    row = {room: i for i, rooms in enumerate(ROWS) for room in rooms}
    wrong = []
    for module, path in modules():
        if room_of(module) in ("", "__main__"):
            continue
        for target in imports(path):
            mine, theirs = room_of(module), room_of(target)
            if mine != theirs and row[theirs] > row[mine]:
                wrong.append(f"{module} -> {target}")
    assert wrong == []


def test_no_import_loops():
    graph = {m: {t for t in imports(p) if t != m} for m, p in modules() if m not in ("weightsmith", "weightsmith.cli")}
    # loops.py is reached from compiled.py when first used; verbs are reached from cli/__init__.py by name.
    done, active = set(), []

    def visit(module):
        if module in active:
            pytest.fail(" -> ".join([*active[active.index(module) :], module]))
        if module in done or module not in graph:
            return
        active.append(module)
        for target in sorted(graph[module]):
            if not module.startswith(target + "."):
                visit(target)
        active.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)


def test_architecture_names_every_room():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for rooms in ROWS:
        for room in rooms:
            assert f"`{room}/`" in text or f"`{room}.py`" in text, room


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda x: str(x) if isinstance(x, str) else "")
def test_modules_are_short(module, path):
    lines = path.read_text(encoding="utf-8").count("\n")
    is_method = path.parent.name in ("merge", "compress") and path.stem != "__init__"
    assert lines <= (LONGEST_METHOD if is_method else LONGEST_MODULE)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_one_file_one_line_one_test(method):
    assert (SOURCE / "merge" / f"{method.name}.py").is_file()
    assert (ROOT / "tests" / "merge" / f"test_{method.name}.py").is_file()


def test_methods_are_all_listed():
    files = {p.stem for p in (SOURCE / "merge").glob("*.py")} - {"__init__"}
    assert files == {m.name for m in METHODS}


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)
def test_one_file_one_line_one_test_of_encodings(encoding):
    assert (SOURCE / "compress" / f"{encoding.name}.py").is_file()
    assert (ROOT / "tests" / "compress" / f"test_{encoding.name}.py").is_file()


def test_encodings_are_all_listed():
    assert {p.stem for p in (SOURCE / "compress").glob("*.py")} - {"__init__"} == {e.name for e in ENCODINGS}


def test_public_names_are_sorted_and_there():
    assert weightsmith.__all__ == sorted(weightsmith.__all__)
    for name in weightsmith.__all__:
        assert getattr(weightsmith, name) is not None


def test_docs_are_generated():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    make_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_docs)
    made = make_docs.pages()
    there = {str(p.relative_to(ROOT / "docs")): p.read_text(encoding="utf-8") for p in (ROOT / "docs").rglob("*.md")}
    assert there == made, "run: python scripts/make_docs.py"


@pytest.mark.parametrize(
    ("page", "folder", "methods"), [("bundles", "encodings", ENCODINGS), ("localize", "localizers", LOCALIZERS)]
)
def test_pages_written_by_hand_name_every_method(page, folder, methods):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert [m.name for m in methods if f"[`{m.name}`]({folder}/{m.name}.md)" not in text] == []


def test_links_between_pages_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)[)#]", path.read_text(encoding="utf-8")):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"


def code_blocks(text):
    return re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)


def test_readme_opens_with_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    demo, tests = code_blocks(text)[:2]
    assert len(demo.strip().splitlines()) == len(tests.strip().splitlines()) == 1
    assert "weightsmith demo" in demo
    assert "pytest" in tests
    for command in (demo, tests):
        assert command.startswith("python3 -m venv .venv && ")
        assert "-c constraints.txt" in command
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_constraints_pin_torch_for_the_processor():
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def test_package_pins_nothing():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.findall(r'^\s+"([\w.-]+)([<>=~!]=?[^"]*)"', text, re.M)
    assert found
    assert [name for name, bound in found if not bound.startswith(">=")] == []


def test_no_machine_paths():
    for path in [
        *ROOT.glob("*.md"),
        *SOURCE.rglob("*.py"),
        *(ROOT / "bench").glob("*"),
        *(ROOT / "tests").rglob("*.py"),
    ]:
        if path.is_file():
            assert "/work" + "/" not in path.read_text(encoding="utf-8"), path
