"""Compares a wheel with the tree: every file that git tracks in the packages, and nothing else.

python tests/check_wheel.py dist/*.whl
"""

import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGES = {
    "mlx_embeddinggemma/": "mlx_embeddinggemma/",
    "convert/": "mlx_embeddinggemma/convert/",
    "bench/": "mlx_embeddinggemma/bench/",
}


def tracked() -> set[str]:
    """Installed names of the tracked files."""
    listed = subprocess.run(["git", "ls-files", *PACKAGES], capture_output=True, text=True, check=True)
    return {
        installed + name.removeprefix(folder)
        for name in listed.stdout.splitlines()
        for folder, installed in PACKAGES.items()
        if name.startswith(folder) and not name.endswith("NOTES.md")
    }


def main() -> None:
    wheel = Path(sys.argv[1])
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = tracked()
    for name in sorted(expected - names):
        print(f"missing from {wheel.name}: {name}")
    for name in sorted(names - expected):
        print(f"in {wheel.name} but not in the tree: {name}")
    if names != expected:
        raise SystemExit(1)
    print(f"{wheel.name}: {len(names)} files, the same as the tree")


if __name__ == "__main__":
    main()
