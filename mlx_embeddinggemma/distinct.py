"""Texts that come again are not computed again."""

from collections.abc import Sequence
from hashlib import blake2b


class Distinct:
    """Which of all texts so far differ, and which of them each text is.

    A text is known by its digest: a generator's texts are gone when their vectors are there.

    Attributes:
        where: each text's row among the distinct ones.
    """

    def __init__(self) -> None:
        self.where: list[int] = []
        self._rows: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, texts: Sequence[str]) -> list[str]:
        """Takes more texts and returns those of them that are new, in their order."""
        keys = [_digest(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        self._rows |= {key: len(self._rows) + i for i, key in enumerate(new)}
        self.where += [self._rows[key] for key in keys]
        return list(new.values())


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
