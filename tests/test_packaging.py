"""The wheel holds what a user needs, and works from another folder than this one."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ppo_kl.load import SHIPPED

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_config_and_the_type_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"ppo_kl/configs/{p.relative_to(ROOT / 'configs')}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert configs
    assert configs | {"ppo_kl/py.typed", "ppo_kl/cli.py"} <= names


def test_the_installed_wheel_trains_from_another_folder_with_its_own_configs(wheel, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = "import ppo_kl.load; print(ppo_kl.load.SHIPPED)"
    found = subprocess.run([sys.executable, "-c", where], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.strip() == str(site / "ppo_kl" / "configs")
    command = [
        sys.executable,
        "-m",
        "ppo_kl",
        "train",
        "--env",
        "cartpole",
        "--objective",
        "clip",
        "--total-steps",
        "256",
    ]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/CartPole-v1/clip/seed0/result.json").is_file()


def test_an_editable_install_reads_the_configs_of_the_checkout():
    if (Path(SHIPPED).parent.name) == "ppo_kl":
        pytest.skip("the package under test is not an editable install")
    assert Path(SHIPPED) == ROOT / "configs"
