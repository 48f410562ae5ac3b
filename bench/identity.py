"""What was measured, and on what: the model's files, the machine, the versions."""

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from mlx_embeddinggemma import __version__, hub, runtime
from mlx_embeddinggemma.json_files import read_json


def sha256(folder: Path) -> str:
    """Of the weights: of the one safetensors file, or of the list of several's hashes."""
    hashes = []
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def model(name: str) -> dict[str, Any]:
    """Name, folder's size in bytes, sha256 of the weights, and what a conversion wrote down."""
    folder = hub.find(name)
    about: dict[str, Any] = {
        "name": label(name),
        "size_bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()),
        "sha256": sha256(folder),
        # A hub download lies in snapshots/<commit>.
        "revision": folder.name if folder.parent.name == "snapshots" else None,
        "recipe": None,
    }
    conversion = folder / "conversion.json"
    if conversion.is_file():
        written = read_json(conversion)
        written = written if isinstance(written, dict) else {}
        recipe = written.get("recipe")
        about["recipe"] = recipe.get("name") if isinstance(recipe, dict) else recipe
        source = written.get("source")
        about["source"] = source.get("name") if isinstance(source, dict) else source
        about["revision"] = about["revision"] or written.get("revision")
    return about


def label(name: str) -> str:
    """A model's name without the path to it: records are for sharing."""
    return Path(name).name if Path(name).expanduser().is_dir() else name


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "chip": _chip(),
        "cores": runtime.cores(),
        "memory_gb": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.mac_ver()[0] or platform.release()}",
        "device": "GPU" if runtime.on_gpu() else "CPU",
        "power": _power(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of this package and of what computes."""
    found = {"mlx-embeddinggemma": __version__}
    for name in ("mlx", "numpy", "scikit-learn", "mteb"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Of the checkout this file lies in, with "+" where files differ from it; None without one."""
    here = Path(__file__).resolve().parent
    head = _output("git", "-C", str(here), "rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    root = _output("git", "-C", str(here), "rev-parse", "--show-toplevel")
    changed = _output("git", "-C", root, "status", "--porcelain", "--untracked-files=no")
    return head + "+" * bool(changed)


def _chip() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _power() -> str | None:
    """Mains or battery, and whether a Mac saves power; None where it cannot be read."""
    if platform.system() == "Darwin":
        source = _output("pmset", "-g", "batt").partition("'")[2].partition("'")[0]
        saving = "lowpowermode 1" in " ".join(_output("pmset", "-g").split())
        return f"{source}{', low power mode' if saving else ''}" or None
    supplies = Path("/sys/class/power_supply").glob("*/online")
    online = [path.read_text().strip() == "1" for path in supplies]
    return None if not online else "AC Power" if any(online) else "Battery Power"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
