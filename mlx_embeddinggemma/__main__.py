"""`python -m mlx_embeddinggemma`."""

from mlx_embeddinggemma.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
