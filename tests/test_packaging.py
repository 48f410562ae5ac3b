"""Imports point one way, stay light, and nothing heavy is needed for the core."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# config <- model <- checkpoint <- encoder <- {convert, bench, commands} <- cli
RANK = {
    "blas": 0, "distinct": 0, "errors": 0, "exponential": 0, "head": 0, "linear": 0, "progress": 0,
    "streams": 0, "config": 1, "folders": 1, "given": 1, "inputs": 1, "presence": 1, "prompts": 1,
    "runtime": 1, "similarity": 1, "strict_json": 1, "text_files": 1, "unit": 1, "watched": 1,
    "activation": 2, "attention": 2, "batching": 2, "compute": 2, "dropin": 2, "expansion": 2,
    "json_files": 2, "layout": 2, "outputs": 2, "packed": 2, "precision": 2, "rows": 2,
    "tensors": 2, "buffers": 3, "hub": 3, "model": 3, "modules": 3, "options": 3, "settings": 3,
    "table": 3, "tokenizer_json": 3, "checkpoint": 4, "tokenizer": 4, "convert": 5, "loaded": 5,
    "loading": 5, "encoder": 6, "finetune": 6, "bench": 7, "embed": 7, "search": 7, "verify": 7,
    "cli": 8, "__main__": 9,
}  # fmt: skip
HEAVY = {"torch", "transformers", "sentence_transformers", "mteb", "mlx_lm", "scipy", "pandas"}


def imports(path: Path) -> set[str]:
    """Absolute names of what a file imports, whether at the top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files() -> list[tuple[str, Path]]:
    core = [(path.stem, path) for path in (ROOT / "mlx_embeddinggemma").glob("*.py")]
    rooms = [
        (room, path)
        for room in ("convert", "bench")
        for path in (ROOT / room).rglob("*.py")
        if not path.name.startswith("test_")
    ]
    finetune = (ROOT / "mlx_embeddinggemma" / "finetune").glob("*.py")
    return core + rooms + [("finetune", path) for path in finetune]


def test_imports_point_one_way():
    for room, path in files():
        if room == "__init__":
            continue
        for name in imports(path):
            if name.startswith("mlx_embeddinggemma.") and name.split(".")[1] in RANK:
                target = name.split(".")[1]
                assert RANK[target] < RANK[room], f"{path.name} imports {name}"


def test_every_core_file_has_its_place():
    known = set(RANK) | {"__init__"}
    assert {room for room, _ in files()} <= known


def test_the_core_imports_nothing_heavy():
    for room, path in files():
        if room not in ("bench", "encoder", "outputs"):  # these two give torch's tensors when asked to
            assert not {name.split(".")[0] for name in imports(path)} & HEAVY, path


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_the_encoder_loads_nothing_heavy():
    code = "import sys; from mlx_embeddinggemma import EmbeddingGemma; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run(code).split()}
    assert "mlx" in loaded
    assert not loaded & (HEAVY | {"huggingface_hub", "tokenizers", "sentencepiece"})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_importing_the_encoder_takes_12_mb_at_most_over_mlx_and_numpy():
    """How much of a library the kernel maps at a time is the machine's choice: so the difference."""

    def peak(code: str) -> int:
        lines = run(f"{code}; print(open('/proc/self/status').read())").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

    ours = peak("from mlx_embeddinggemma import EmbeddingGemma")
    assert ours - peak("import mlx.core, numpy") < 12 * 1024


@pytest.mark.parametrize("code", ["import mlx_embeddinggemma", "from mlx_embeddinggemma.cli import *"])
def test_import_takes_less_than_200_ms(code):
    """Over an empty interpreter, the best of five."""
    timed = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
    assert min(float(run(timed)) for _ in range(5)) < 0.2


def test_public_names_exist():
    import mlx_embeddinggemma

    for name in mlx_embeddinggemma.__all__:
        assert getattr(mlx_embeddinggemma, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mlx_embeddinggemma.nonsense


WITHOUT_MLX = "import sys; sys.modules['mlx'] = None; sys.modules['mlx.core'] = None; "


def test_without_a_backend_the_import_names_the_extra():
    code = WITHOUT_MLX + "import mlx_embeddinggemma as m; m.EmbeddingGemma"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'ImportError: MLX has no backend here: pip install "mlx-embeddinggemma[cpu]"' in done.stderr


def test_without_a_backend_a_command_prints_one_line():
    code = WITHOUT_MLX + "from mlx_embeddinggemma.cli import main; sys.exit(main(['verify', 'demo']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("mlx-embeddinggemma: MLX has no backend here: pip install")
    assert done.stderr.count("\n") == 1
