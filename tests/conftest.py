import os
import signal
from pathlib import Path

import checkpoints
import pytest

from mlx_embeddinggemma import runtime

ROOT = Path(__file__).parent.parent
# A shell's background jobs ignore Ctrl-C, and so would the commands that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["MLX_ENABLE_TF32"] = "0"  # as the package sets it, for tests that use parts of it alone


@pytest.fixture(params=["as here", "as on a GPU"])
def machine(request, monkeypatch) -> None:
    """What is computed otherwise on a GPU, computed here too: every operation runs on any device."""
    if request.param == "as on a GPU":
        monkeypatch.setattr(runtime, "on_gpu", lambda: True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A small random checkpoint with the real layout and window."""
    return checkpoints.write_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real tokenizer, golden vectors and tasks; not part of the repository."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the project's shared data folder beside the checkout")
    return path


@pytest.fixture(scope="session")
def full_mild(tmp_path_factory, shared) -> Path:
    """Full size, well conditioned."""
    return checkpoints.write_full(tmp_path_factory.mktemp("full") / "mild", shared, "mild")


@pytest.fixture(scope="session")
def full_real(tmp_path_factory, shared) -> Path:
    """Full size, the real tensors' statistics."""
    return checkpoints.write_full(tmp_path_factory.mktemp("full") / "real", shared, "real")


@pytest.fixture(scope="session")
def demo() -> Path:
    """The bundled checkpoint."""
    return ROOT / "mlx_embeddinggemma" / "demo"
