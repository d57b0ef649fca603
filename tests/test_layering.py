"""Imports run downwards only, and what must stay light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ppo_kl

PACKAGE = Path(ppo_kl.__file__).parent
# From the ground up; a room may import from its own floor and those below, but for the pairs that are walled off.
FLOORS = (
    {"errors", "atomic"},
    {"config"},
    {"imports", "observations"},
    {"objectives", "load"},
    {"batch", "policies", "checkpoint", "testing", "integrations"},
    {"envs", "diagnostics"},
    {"training"},
    {"export", "bench", "ablation"},
    {"commands"},
    {"cli", "__main__", "__init__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WALLS = {
    ("objectives", "load"),
    ("imports", "observations"),
    ("observations", "imports"),
    ("envs", "diagnostics"),
    ("diagnostics", "envs"),
    ("envs", "policies"),
}


def imports_of(path):
    """Names of the modules that a file imports, inside functions too; what a file only needs for types as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "ppo_kl":
                yield from (f"ppo_kl.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room_of(module):
    return module.split(".")[1] if "." in module else "__init__"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards_only(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports_of(path):
        if module.split(".")[0] != "ppo_kl" or module == "ppo_kl.__version__":
            continue
        there = room_of(module)
        assert FLOOR[there] <= FLOOR[here], f"{path} (floor of {here}) imports {module} from above"
        assert (here, there) not in WALLS, f"{path} imports {module} through a wall"


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(PACKAGE / "config")], ids=lambda p: p.name)
def test_settings_need_the_standard_library_alone(path):
    foreign = {m.split(".")[0] for m in imports_of(path)} - set(sys.stdlib_module_names) - {"ppo_kl"}
    assert not foreign


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(PACKAGE / "objectives")], ids=lambda p: p.name)
def test_objectives_import_torch_and_their_settings_alone(path):
    modules = set(imports_of(path))
    foreign = {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names) - {"ppo_kl", "torch"}
    ours = {m for m in modules if m.startswith("ppo_kl.") and not m.startswith("ppo_kl.objectives")}
    assert not foreign
    assert ours <= {"ppo_kl.config.objective", "ppo_kl.config.presets", "ppo_kl.errors"}


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(PACKAGE / "integrations")], ids=lambda p: p.name)
def test_an_adapter_imports_the_objectives_and_nothing_else_of_ours(path):
    ours = {room_of(module) for module in imports_of(path) if module.startswith("ppo_kl.")}
    assert ours <= {"objectives", "config", "errors", "integrations"}


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sorted(m.split('.')[0] for m in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_objectives_load_torch_and_no_environment_file_or_log_library():
    loaded = loaded_by("import ppo_kl.objectives")
    assert "torch" in loaded
    assert not loaded & {"gymnasium", "yaml", "tyro", "tensorboard", "rich", "matplotlib"}
    assert not loaded & {"safetensors", "onnx", "onnxruntime", "onnxscript"}
    assert not loaded & {"stable_baselines3", "torchrl", "tensordict", "skrl", "tianshou"}


def test_help_and_a_typo_are_answered_without_torch():
    for arguments in (["train", "--help"], ["train", "--seed", "x"], ["evaluate", "--help"], ["export", "--help"]):
        code = (
            "import sys, io, contextlib\n"
            "from ppo_kl.cli import main\n"
            "with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:\n"
            "    try:\n"
            f"        main({arguments!r})\n"
            "    except SystemExit:\n"
            "        pass\n"
            "assert out.getvalue() or err.getvalue()\n"
            "print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False", arguments


def test_every_public_name_loads_and_a_wrong_one_is_refused():
    for name in ppo_kl.__all__:
        assert getattr(ppo_kl, name) is not None
    with pytest.raises(AttributeError, match="Agnt"):
        _ = ppo_kl.Agnt
