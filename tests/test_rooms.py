"""The rooms import one way, importing does nothing, and the command line starts light."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
FORBIDDEN = {
    "models": {"xarray", "pandas", "boto3", "prefect", "h5py", "zarr", "pipeline", "flows"},
    "pipeline": {"prefect", "flows"},
    "flows": {"torch", "xarray", "boto3"},
}
# the only modules of pipeline that may see torch, and only inside functions
SEE_TORCH = {"nowcast.py", "train.py", "advection.py"}


def imports(file: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(file.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_one_way(room):
    files = list((PROJECT / room).rglob("*.py"))
    assert files
    for file in files:
        assert not imports(file) & FORBIDDEN[room], file


def test_pipeline_sees_torch_only_inside_three_modules():
    for file in (PROJECT / "pipeline").rglob("*.py"):
        assert "torch" not in imports(file, top_level_only=True), file
        if file.name not in SEE_TORCH:
            assert "torch" not in imports(file), file


def test_importing_every_module_has_no_side_effects(tmp_path):
    modules = [
        ".".join(file.relative_to(PROJECT).with_suffix("").parts)
        for room in FORBIDDEN
        for file in (PROJECT / room).rglob("*.py")
        if "migrations" not in file.parts and file.name != "__init__.py"
    ]
    script = "import importlib, sys\nfor m in sys.argv[1:]:\n    importlib.import_module(m)\n"
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, *modules], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    ours = [path for path in tmp_path.iterdir() if path.name not in {"prefect", "home"}]
    assert ours == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["status", "--json"], ["config", "show"]])
def test_light_commands_load_neither_torch_nor_prefect(arguments, tmp_path):
    script = (
        "import json, sys\nfrom flows import cli\n"
        "try:\n    cli.app(sys.argv[1:])\nexcept SystemExit as exit:\n    assert exit.code == 0, exit.code\n"
        "print(json.dumps([m for m in ('torch', 'prefect', 'xarray') if m in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == []
