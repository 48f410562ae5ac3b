"""What killed processes leave is cleaned up at the next run; what is in use is left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from mlx_embeddinggemma.folders import new_folder

# Writes half a folder, says so, and waits to be killed.
WRITER = (
    "import sys, time; from pathlib import Path; from mlx_embeddinggemma.folders import new_folder\n"
    "with new_folder(Path(sys.argv[1]), replace=True) as folder:\n"
    "    (folder / 'half').write_text('x'); print('ready', flush=True); time.sleep(600)\n"
)


def writer(target: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def names(folder: Path) -> set[str]:
    return {child.name for child in folder.iterdir()}


def test_what_a_killed_process_left_goes_at_the_next_run_and_what_is_in_use_stays(tmp_path):
    target = tmp_path / "out"
    dead, alive = writer(target), writer(target)
    kill(dead)
    assert len(names(tmp_path)) == 2
    with new_folder(target) as folder:
        (folder / "whole").write_text("y")
    left = names(tmp_path) - {"out"}
    assert len(left) == 1 and names(target) == {"whole"}
    kill(alive)
    with new_folder(target, replace=True) as folder:
        (folder / "newer").write_text("z")
    assert names(tmp_path) == {"out"} and names(target) == {"newer"}


def test_a_folder_that_a_killed_process_had_just_moved_away_comes_back(tmp_path):
    target, old = tmp_path / "out", tmp_path / ".out.old-x"
    old.mkdir()
    (old / "sound").write_text("y")
    try:
        with new_folder(target, replace=True):
            assert names(target) == {"sound"}
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert names(tmp_path) == {"out"} and names(target) == {"sound"}
