"""A progress bar on stderr, where somebody sees it.

tqdm's import takes 5 MB and a third of this package's own; and a process that is forked while another
thread imports it could never import it again.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """What is done so far, `n`, and more of it."""

    n: float

    def update(self, n: int) -> object: ...


class _Unseen:
    n: float = 0

    def update(self, n: int) -> None:
        self.n += n


def progress_bar(total: int | None, show: bool | None) -> AbstractContextManager[Bar]:
    """A bar over texts, which appears after a second.

    Args:
        total: how many there are, None where nobody knows.
        show: whether; None shows it on a terminal.
    """
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    if not (on_terminal if show is None else show):
        return nullcontext(_Unseen())
    from tqdm import tqdm

    return tqdm(total=total, unit=" texts", delay=1)
