"""The house rules that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import trio

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "meshnode").rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def tool(*command):
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


def test_code_is_formatted():
    tool("ruff", "format", "--check", "meshnode", "tests", "examples", "noxfile.py")


def test_code_is_linted():
    tool("ruff", "check", "meshnode", "tests", "examples", "noxfile.py")


def test_types_hold():
    """The stubs that libp2p's trio-typing installs hide trio's own types; a link earlier on mypy's path brings them back."""
    own = ROOT / ".mypy_cache" / "own"
    own.mkdir(parents=True, exist_ok=True)
    link, package = own / "trio", Path(trio.__file__).parent
    if not link.exists() or link.resolve() != package:
        link.unlink(missing_ok=True)
        link.symlink_to(package)
    tool("mypy")


def test_nothing_of_what_keeps_all_else_alive_is_untested():
    parts = ("supervise", "flow")
    measured = [f"--cov=meshnode.{part}" for part in parts]
    gate = ("--cov-branch", "--cov-fail-under=100", "--cov-report=term-missing:skip-covered")
    tool("pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{part}" for part in parts), *measured, *gate)


def test_imports_point_one_way():
    command = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    result = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_is_one_idea(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_and_what_it_offers(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    if path.name != "__main__.py":
        names = [target.id for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)
                 for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                 if isinstance(target, ast.Name)]  # fmt: skip
        assert "__all__" in names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_constructors_are_small(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len(arguments) - 1 <= 7, f"{name_of(path)}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_buffer_is_unbounded(path):
    assert "open_memory_channel(math.inf" not in path.read_text().replace("[_Item]", "")


def test_the_daemon_loads_neither_torch_nor_libp2p():
    code = "import sys, meshnode.node.process; print([m for m in ('torch', 'libp2p') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
