"""Errors that a user can mend: the message is the whole answer."""


class EmbeddingGemmaError(ValueError):
    """Something the caller can mend: the message says what was expected, what came, what to do."""


def missing_backend(error: ImportError) -> str | None:
    """What to install when MLX itself does not import; None when it is something else.

    On Linux the plain `mlx` package has no backend: `libmlx.so` comes with one of three extras.
    """
    if (error.name or "").partition(".")[0] == "mlx" or "libmlx" in str(error):
        return (
            'MLX has no backend here: pip install "mlx-embeddinggemma[cpu]" on Linux (or [cuda12], '
            "[cuda13]; one of them), pip install mlx on a Mac with Apple Silicon"
        )
    return None
