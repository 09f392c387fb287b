"""Promises that hold for the whole package and can be read off its text or its processes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.contract.tree import PACKAGE, REPOSITORY, parsed, project, source_files


def _run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


HEAVY = "('torch', 'numpy', 'safetensors', 'tokenizers', 'PIL', 'huggingface_hub')"


def test_importing_petzval_loads_nothing_heavy() -> None:
    run = _run(f"import sys, petzval; print([m for m in {HEAVY} if m in sys.modules])")
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


@pytest.mark.parametrize("command", ["", "generate", "show", "models", "doctor", "verify"])
def test_help_loads_nothing_heavy(command: str) -> None:
    arguments = ["petzval", *([command] if command else []), "--help"]
    run = _run(
        f"import sys\nsys.argv = {arguments!r}\n"
        "from petzval.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    assert run.returncode == 0, run.stderr
    assert "Usage" in run.stdout
    assert run.stderr.strip() == "[]", run.stderr


def test_the_version_is_that_of_the_changelog() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[?([^\]\s]+)\]?", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == project()["project"]["version"]


def test_the_door_states_the_same_version() -> None:
    run = _run("import petzval; print(petzval.__version__)")
    assert run.stdout.strip() == project()["project"]["version"], run.stderr


def _imported(path: Path) -> set[str]:
    """Full names of all modules a file imports, also by `import_module("…")`."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return names


def _calls(path: Path, module: str, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == name
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == module
    ]


def test_nothing_from_outside_is_unpickled() -> None:
    for path in source_files():
        imported = {name.split(".")[0] for name in _imported(path)}
        assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path
        for call in _calls(path, "torch", "load"):
            safe = {k.arg: k.value for k in call.keywords}.get("weights_only")
            assert isinstance(safe, ast.Constant), path
            assert safe.value is True, path


MAKERS = {
    "torch.cuda",
    "torch.mps",
    "torch.xpu",
    "torch.backends.cuda",
    "torch.backends.cudnn",
    "torch.backends.mps",
}


def _of_one_maker(tree: ast.AST) -> list[ast.Attribute | ast.Import | ast.ImportFrom]:
    """Where code names one maker's part of torch, imports it, or calls `.cuda()` on anything."""
    found: list[ast.Attribute | ast.Import | ast.ImportFrom] = []
    for node in ast.walk(tree):
        names: set[str] = set()
        if isinstance(node, ast.Attribute):
            names = {ast.unparse(node)}
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in {"cuda", "xpu"}:
                found.append(node.func)
            continue
        if isinstance(node, ast.Attribute | ast.Import | ast.ImportFrom) and names & MAKERS:
            found.append(node)
    return found


def test_calls_of_one_maker_stand_in_kernels_alone() -> None:
    """Elsewhere devices go by torch's own names (`torch.accelerator`, `torch.Stream`)."""
    hits = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for path in source_files()
        if path.relative_to(PACKAGE).parts[0] != "kernels"
        for node in _of_one_maker(parsed(path))
    ]
    assert not hits


@pytest.mark.parametrize(
    "line",
    [
        "torch.cuda.synchronize()",
        "torch.backends.cudnn.benchmark = True",
        "network.denoiser.cuda()",
        "tensor.bfloat16().cuda(1)",
        "from torch import cuda",
        "import torch.backends.cudnn",
        "from torch.backends.cudnn import flags",
    ],
)
def test_calls_of_one_maker_are_seen(line: str) -> None:
    assert _of_one_maker(ast.parse(line))


def test_torchs_own_names_are_of_no_maker() -> None:
    fine = "torch.accelerator.synchronize(); tensor.to('cuda'); torch.device('cuda').type"
    assert not _of_one_maker(ast.parse(fine))


def test_the_error_tree_is_drawn_as_it_is() -> None:
    tree = parsed(PACKAGE / "errors.py")
    drawn = set(re.findall(r"[├└]── (\w+)", ast.get_docstring(tree) or ""))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert drawn | {"PetzvalError"} == classes


def test_every_dependency_is_pinned_once() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines if "==" in line]
    assert len(pins) == len(set(pins))
    settings = project()["project"]
    wanted = [*settings["dependencies"]]
    for extra in settings["optional-dependencies"].values():
        wanted += extra
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ]", w)[0]).lower() for w in wanted}
    assert names <= set(pins), names - set(pins)


def test_every_dependency_of_the_package_is_imported_somewhere() -> None:
    """What nothing imports is not a dependency; development tools are run, not imported."""
    imported = {name for path in source_files() for name in _imported(path)}
    roots = {name.split(".")[0] for name in imported}
    used = {
        distribution.lower().replace("_", "-")
        for module, distributions in packages_distributions().items()
        if module in roots
        for distribution in distributions
    }
    if "torch.utils.tensorboard" in imported:
        used.add("tensorboard")
    if "diffusers" in roots:
        used.add("accelerate")  # what diffusers itself moves models with
    settings = project()["project"]
    wanted = [*settings["dependencies"]]
    for extra, packages in settings["optional-dependencies"].items():
        wanted += [] if extra == "dev" else packages
    names = {re.split(r"[\[<>=~! ]", w)[0].lower().replace("_", "-") for w in wanted}
    assert names - used == set()
