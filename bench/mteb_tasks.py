"""Any task of the `mteb` package, with our encoder; mteb downloads, scores and keeps the results.

Needs the extra `mteb`, with torch: mteb's torch-free distribution, mteb-core, lists tasks and reads
results, and refuses to evaluate.

    import mteb
    from mlx_embeddinggemma.bench.mteb_tasks import model_meta

    model = model_meta("google/embeddinggemma-300m").load_model(embed_dim=256)
    mteb.evaluate(model, mteb.get_tasks(["SciFact"]))
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from mlx_embeddinggemma import EmbeddingGemma, hub
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.prompts import with_title

from .identity import sha256
from .scores import cut
from .tasks import published

# Of MTEB(eng, v2): twelve cheap tasks whose scores predict the benchmark's mean, over 88 models, with
# an error of 1.0 and a rank correlation of 0.98. They hold no retrieval, which suffers most from fewer
# dimensions; NanoBEIR's mean follows the retrieval mean with r = 0.99.
TWELVE = (
    "MassiveIntentClassification",
    "AskUbuntuDupQuestions",
    "BIOSSES",
    "STS17",
    "ArXivHierarchicalClusteringS2S",
    "STS15",
    "MTOPDomainClassification",
    "TwentyNewsgroupsClustering.v2",
    "ToxicConversationsClassification",
    "STS22.v2",
    "SummEvalSummarization.v2",
    "MedrxivClusteringS2S.v2",
)
BENCHMARKS = {"english": "MTEB(eng, v2)", "multilingual": "MTEB(Multilingual, v2)"}
PRESETS = ("subset", *BENCHMARKS)


class Encoder(AbsEncoder):
    """An `EmbeddingGemma` as mteb's `EncoderProtocol`.

    Args:
        model: the encoder; several of these may share it.
        dim: size of the vectors.
        known: full vectors by prompted text, filled and read here: shared by the encoders of several
            dimensions, it lets one forward pass serve them all.
    """

    def __init__(
        self, model: EmbeddingGemma, dim: int, known: dict[str, np.ndarray] | None = None
    ) -> None:
        self.model = model
        self.prompts = self.model_prompts = model.prompts
        self.dim = dim
        self.known = known

    def encode(
        self, inputs: Iterable[Any], *, task_metadata: Any, prompt_type: Any = None, **_: Any
    ) -> np.ndarray:
        """Vectors of the texts of mteb's batches, (n, dim), of unit length.

        A document's title goes where EmbeddingGemma was trained to see it: into its prompt.
        """
        prompt = self.prompts[self.get_prompt_name(task_metadata, prompt_type) or "query"]
        texts = []
        for batch in inputs:
            bodies = batch["body"] if prompt_type == PromptType.document else batch["text"]
            titles = batch.get("title") or [None] * len(bodies)
            texts += [with_title(prompt, t) + body for t, body in zip(titles, bodies, strict=True)]
        known = {} if self.known is None else self.known
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(new, self.model.encode(new, prompt=""), strict=True))
        return cut(np.stack([known[text] for text in texts]), self.dim)


def model_meta(model: str, encoder: EmbeddingGemma | None = None) -> ModelMeta:
    """What mteb keeps about a model; its `load_model(embed_dim=...)` gives the encoder.

    Args:
        model: "demo", a folder or a hub id.
        encoder: the same, already loaded.
    """
    folder = hub.find(model)
    loaded = encoder or EmbeddingGemma(folder)
    known: dict[str, np.ndarray] = {}

    def load(name: str, revision: str | None = None, embed_dim: int | None = None, **_: Any) -> Any:
        return Encoder(loaded, embed_dim or loaded.dimensions[0], known)

    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    return ModelMeta(
        loader=load,
        # mteb wants "organisation/model"; a folder has no organisation.
        name=model if hub_id(model) else f"mlx-embeddinggemma/{folder.resolve().name}",
        revision=folder.name if hub_id(model) else sha256(folder)[:16],
        release_date="2025-09-04",
        languages=None,
        n_parameters=None,
        memory_usage_mb=size / 2**20,
        max_tokens=loaded.max_length,
        embed_dim=list(loaded.dimensions),
        license="gemma",
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["safetensors"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=True,
        training_datasets=None,
    )


def hub_id(model: str) -> bool:
    """Whether the name is one of the hub, not "demo" or a folder."""
    return model != "demo" and not Path(model).expanduser().is_dir()


def find(names: Sequence[str]) -> list[Any]:
    """Mteb's tasks of these names and presets.

    Raises:
        EmbeddingGemmaError: mteb knows no such task.
    """
    found: dict[str, Any] = {}
    for name in names:
        if name == "subset":
            english = mteb.get_benchmark(BENCHMARKS["english"]).tasks
            tasks = [task for task in english if task.metadata.name in TWELVE]
            tasks += mteb.get_benchmark("NanoBEIR").tasks
        elif name in BENCHMARKS:
            tasks = list(mteb.get_benchmark(BENCHMARKS[name]).tasks)
        else:
            try:
                tasks = [mteb.get_task(name)]
            except KeyError:
                raise EmbeddingGemmaError(
                    f"neither a bundled or local task nor one of mteb's: {name!r}"
                ) from None
        found |= {task.metadata.name: task for task in tasks}
    return list(found.values())


def about(task: Any) -> dict[str, Any]:
    """What the record says of a task, as for the bundled ones."""
    scores = [
        published(task.metadata.name, split, subset)
        for split in task.eval_splits
        for subset in task.hf_subsets
    ]
    known = [score for score in scores if score is not None]
    return {
        "type": task.metadata.type,
        "metric": task.metadata.main_score,
        "published": statistics.mean(known) if len(known) == len(scores) else None,
        "note": "",
    }


def evaluate(meta: ModelMeta, task: Any, dims: Sequence[int], cache: Path) -> dict[int, float]:
    """The task's main score at each dimension; one forward pass for all of them.

    Args:
        meta: of the model.
        task: mteb's.
        dims: sizes of the vectors.
        cache: folder for results in mteb's own format; what is there is not computed again.

    Raises:
        EmbeddingGemmaError: mteb could not download or evaluate it.
    """
    scores = {}
    model: Any = None
    try:
        for dim in dims:
            model = meta.load_model(embed_dim=dim)
            result = mteb.evaluate(
                model,
                task,
                cache=mteb.ResultCache(cache),
                # mteb hands out texts a batch at a time, and the encoder sorts a batch by length.
                encode_kwargs={"batch_size": 2048, "show_progress_bar": False},
                show_progress_bar=False,
            )
            scores[dim] = float(result.task_results[0].get_score())
            if not math.isfinite(scores[dim]):
                raise EmbeddingGemmaError(f"{task.metadata.name} has no score at {dim} dimensions")
    except EmbeddingGemmaError:
        raise
    except Exception as error:  # whatever the network, the data set or mteb's code may raise
        first_line = str(error).strip().partition("\n")[0][:300]
        remedy = "; without a network there are the bundled tasks (--tasks quick)"
        raise EmbeddingGemmaError(
            f"mteb could not evaluate {task.metadata.name}: {type(error).__name__}: {first_line}"
            f"{remedy if isinstance(error, OSError) else ''}"
        ) from error
    finally:
        if model is not None:
            model.known.clear()
    return scores
