"""The one exception that stands for a user's mistake: its message is the whole answer."""


class EmbeddingGemmaError(ValueError):
    """Something the caller can mend: the message says what was expected, what came, what to do."""
