"""Task names to prompts: EmbeddingGemma was trained to see its task in front of the text."""

from collections.abc import Mapping
from pathlib import Path

from mlx_embeddinggemma.checkpoint import read_json
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


def load_prompts(folder: Path) -> dict[str, str]:
    """Prompts by name: the checkpoint's own, and the model card's two more."""
    path = folder / "config_sentence_transformers.json"
    settings = read_json(path) if path.exists() else {"prompts": PUBLISHED}
    prompts = settings.get("prompts") or {} if isinstance(settings, dict) else None
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise EmbeddingGemmaError(
            f"{path}: expected an object with prompts by name, got {settings!r:.80}"
        )
    return {**MODEL_CARD, **prompts}


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


def with_title(prompt: str, title: str | None) -> str:
    """The document prompt for a text with a title: "title: none" becomes "title: {title}"."""
    return prompt.replace("title: none", f"title: {title}", 1) if title else prompt
