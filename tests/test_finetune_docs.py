"""What docs/finetune.md shows runs, as it is written, on the demo checkpoint."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")


def test_the_worked_example_runs(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in commands.splitlines():
        line = re.sub(r"^mlx-embeddinggemma ", "python -m mlx_embeddinggemma ", line)
        done = subprocess.run(
            re.sub(r"^python ", f"{sys.executable} ", line),
            shell=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONWARNINGS": "error"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    table = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in table] == ["demo", "banking", "banking-4bit"]
    assert all(0 <= float(row[i]) <= 100 for row in table for i in (2, 4))
    assert (tmp_path / "banking" / "finetune.svg").read_text().startswith("<svg")


def test_the_function_runs(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


def test_every_flag_the_page_names_exists():
    from mlx_embeddinggemma.cli import build_parser

    known = build_parser()._subparsers._group_actions[0].choices["finetune"].format_help()
    for flag in set(re.findall(r"(?<!-)--[a-z][a-z-]+", PAGE)) - {"--recipe"}:
        assert flag in known, flag
