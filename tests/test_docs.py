"""What the README shows runs, as it is written, on the demo checkpoint."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlx_embeddinggemma.bench import readme

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HUB = "google/embeddinggemma-300m"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_of_the_readme_runs(code):
    code = code.replace(HUB, "demo")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_commands_of_the_readme_run(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        command = line.replace("mlx-embeddinggemma ", f"{sys.executable} -m mlx_embeddinggemma ", 1)
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert "Traceback" not in done.stderr


def test_every_file_the_readme_links_to_exists():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"])
def test_no_placeholder_is_left(name):
    assert not re.search(r"@[A-Z]+@|TODO|FIXME", (ROOT / name).read_text())


def test_the_readmes_tables_are_those_of_the_committed_records():
    """If not: `make readme`."""
    assert readme.regenerated(README, ROOT) == README
