"""What the package must never do."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "uadt_trainer"

# Calls that read or send pickled objects.
PICKLING = {
    "load": {"torch", "numpy", "np", "joblib"},
    "save": {"torch"},
    "all_gather_object": {"dist", "distributed"},
    "broadcast_object_list": {"dist", "distributed"},
    "gather_object": {"dist", "distributed"},
    "scatter_object_list": {"dist", "distributed"},
}


def test_no_pickle() -> None:
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {a.name.split(".")[0] for a in node.names} | {str(getattr(node, "module", ""))}
                assert not names & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = getattr(node.func.value, "id", getattr(node.func.value, "attr", ""))
                assert owner not in PICKLING.get(node.func.attr, set()), f"{path}:{node.lineno}"


def test_every_process_group_has_a_time_limit() -> None:
    # Those that make one, and at which argument the limit is if it is not named.
    makers = {"init_process_group": None, "new_group": None, "TCPStore": None, "ProcessGroupGloo": 3}
    made = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            if name in makers:
                made += 1
                place = makers[name]
                named = any(k.arg == "timeout" for k in node.keywords)
                assert named or place is not None and len(node.args) > place, f"{path}:{node.lineno}"
    assert made > 0


def test_nothing_waits_for_a_whole_device() -> None:
    """A broadcast to a server that died waits on the device until it is given up; training must go on beside it."""
    waits = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "synchronize":
                waits += 1
                owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
                assert owner not in ("cuda", "accelerator"), f"{path}:{node.lineno}"
    assert waits > 0


def test_no_file_is_long() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
