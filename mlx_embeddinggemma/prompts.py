"""Task names to prompts: EmbeddingGemma was trained to see its task in front of the text."""

from collections.abc import Mapping

from mlx_embeddinggemma.errors import EmbeddingGemmaError

# config_sentence_transformers.json of google/embeddinggemma-300m, for folders that come without it.
PUBLISHED = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "BitextMining": "task: search result | query: ",
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ",
    "MultilabelClassification": "task: classification | query: ",
    "PairClassification": "task: sentence similarity | query: ",
    "Reranking": "task: search result | query: ",
    "Retrieval": "task: search result | query: ",
    "Retrieval-query": "task: search result | query: ",
    "Retrieval-document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: ",
}
# Named in the model card only.
MODEL_CARD = {
    "QuestionAnswering": "task: question answering | query: ",
    "FactChecking": "task: fact checking | query: ",
}


def prompt_for(prompts: Mapping[str, str], name: str) -> str:
    """The prompt called `name`.

    Raises:
        EmbeddingGemmaError: no such prompt; the message lists the known ones.
    """
    try:
        return prompts[name]
    except (KeyError, TypeError):
        known = ", ".join(prompts) or "none"
        raise EmbeddingGemmaError(f"no prompt is called {name!r}; known prompts: {known}") from None


def choose_prompt(
    prompts: Mapping[str, str], prompt: str | None, name: str | None, default: str | None
) -> str:
    """What goes in front of a text: the prompt itself, else the named one, else the default, else "".

    Args:
        prompts: by name.
        prompt: "" is one, and means none at all.
        name: of a prompt.
        default: the checkpoint's `default_prompt_name`.
    """
    if prompt is not None:
        return prompt
    name = default if name is None else name
    return "" if name is None else prompt_for(prompts, name)


def checked_prompts(prompts: Mapping[str, str | None]) -> dict[str, str]:
    """Prompts that a caller gave; None is an empty one.

    Raises:
        TypeError: not strings by name.
    """
    if not isinstance(prompts, Mapping) or not all(
        isinstance(name, str) and isinstance(text, str | None) for name, text in prompts.items()
    ):
        raise TypeError(f"expected prompts to be strings by name, got {prompts!r:.80}")
    return {name: text or "" for name, text in prompts.items()}


def with_title(prompt: str, title: str | None) -> str:
    """The document prompt for a text with a title: "title: none" becomes "title: {title}"."""
    return prompt.replace("title: none", f"title: {title}", 1) if title else prompt
