"""The files that a running encoder was loaded from, for a copy of them later."""

import shutil
from pathlib import Path

from mlx_embeddinggemma import hub
from mlx_embeddinggemma.checkpoint import Checkpoint
from mlx_embeddinggemma.modules import read_modules
from mlx_embeddinggemma.settings import TRANSFORMER
from mlx_embeddinggemma.watched import Watched, watch


class LoadedFiles:
    """What makes up a checkpoint, whatever its shards and folders are called; held by checksums.

    Args:
        checkpoint: from `open_checkpoint`.
    """

    def __init__(self, checkpoint: Checkpoint):
        folder = checkpoint.folder
        modules = read_modules(folder)
        named = [*hub.BESIDE, *TRANSFORMER]
        named += [f"{path}/config.json" for path in (modules.paths if modules else ())]
        self._files: dict[Path, Watched] = {
            Path(name): watch(folder / name) for name in named if (folder / name).is_file()
        }
        for tensor in checkpoint.tensors.values():
            self._files[tensor.path.relative_to(folder)] = tensor.file

    def copy(self, target: Path) -> None:
        """Copies them to a folder.

        Raises:
            EmbeddingGemmaError: one of them is gone, or became another.
        """
        for name, watched in self._files.items():
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            with (
                watched.open() as file,
                open(file, "rb", closefd=False) as source,
                copy.open("wb") as out,
            ):
                shutil.copyfileobj(source, out, 2**22)
        for watched in self._files.values():
            with watched.open():  # nobody wrote to it meanwhile
                pass
