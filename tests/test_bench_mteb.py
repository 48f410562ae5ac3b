"""Our scores are those that mteb computes with sentence-transformers on the same weights."""

import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from mlx_embeddinggemma.bench import scores, tasks

from mlx_embeddinggemma import EmbeddingGemma

mteb = pytest.importorskip("mteb", reason="needs the extra `mteb`")
threadpool_limits = pytest.importorskip("threadpoolctl").threadpool_limits
sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs `reference`")
pytestmark = pytest.mark.filterwarnings("ignore")

BUNDLED = tasks.known_names()
# With how many texts or pairs: these are long.
LOCAL = {
    "BIOSSES": 60,
    "AmazonCounterfactualClassification-en": 100,
    "indonli": 20,
    "NTREXBitextMining-eng_Latn-deu_Latn": 30,
    "JSTS": 40,
}


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    """The demo checkpoint with tokenizer.json alone, so that both sides read the same tokenizer."""
    path = tmp_path_factory.mktemp("demo") / "demo"
    shutil.copytree(demo, path, ignore=shutil.ignore_patterns("tokenizer.model"))
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return EmbeddingGemma(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    import torch

    torch.set_num_threads(1)
    options = {"dtype": torch.float32}
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu", model_kwargs=options)


@pytest.fixture(scope="module")
def local(shared, tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks")
    with tarfile.open(shared / "mteb-subset.tar.xz") as archive:
        wanted = [m for m in archive if any(f"/{name.partition('-')[0]}/" in m.name for name in LOCAL)]
        archive.extractall(path, wanted, filter="data")
    return path / "mteb-subset"


def first(task, count):
    """The task with some of its texts only, of every class where it has classes."""

    def few(values):
        spread = isinstance(task, (tasks.Classification, tasks.Clustering))
        return values[:: max(1, len(values) // count)] if spread else values[:count]

    kept = {key: few(v) if isinstance(v, list) else v for key, v in vars(task).items()}
    if isinstance(task, tasks.Retrieval):
        queries = [i for i, row in enumerate(task.relevant) if max(row) < count]
        kept |= {
            "queries": [task.queries[i] for i in queries],
            "relevant": [task.relevant[i] for i in queries],
        }
    return type(task)(**kept)


def offline(task):
    """mteb's task of the same name, with our texts in place of a download."""
    from datasets import Dataset

    def pairs(**more):
        return Dataset.from_dict({"sentence1": task.first, "sentence2": task.second, **more})

    found = mteb.get_task(task.task.removesuffix("-captions"), hf_subsets=[task.subset])
    data = {}
    if isinstance(task, tasks.STS):
        data[task.split] = pairs(score=task.gold)
    elif isinstance(task, tasks.PairClassification):
        data[task.split] = pairs(labels=task.gold)
    elif isinstance(task, tasks.BitextMining):
        left, right = task.subset.split("-")
        columns = {"sentence1": "sentence1", "sentence2": "sentence2"}
        if found.parallel_subsets:
            columns = {"sentence1": left, "sentence2": right}
        data[task.split] = pairs().rename_columns(columns)
    elif isinstance(task, tasks.Clustering):
        data[task.split] = Dataset.from_dict({"sentences": task.texts, "labels": task.labels})
    elif isinstance(task, tasks.Classification):
        number = {label: i for i, label in enumerate(sorted(set(task.train_labels)))}
        for split, texts, labels in (
            ("train", task.train, task.train_labels),
            (task.split, task.test, task.test_labels),
        ):
            data[split] = Dataset.from_dict({"text": texts, "label": [number[x] for x in labels]})
    elif isinstance(task, tasks.Retrieval):
        ids = [str(i) for i in range(len(task.queries))]
        documents = {"id": task.document_ids, "title": task.titles, "text": task.documents}
        data[task.split] = {
            "corpus": Dataset.from_dict(documents),
            "queries": Dataset.from_dict({"id": ids, "text": task.queries}),
            "relevant_docs": {
                query: {task.document_ids[d]: int(grade) for d, grade in row.items()}
                for query, row in zip(ids, task.relevant, strict=True)
            },
            "top_ranked": None,
        }
    whole = isinstance(task, tasks.BitextMining) and found.parallel_subsets
    nested = task.subset != "default" or isinstance(task, tasks.Retrieval)
    found.dataset = {task.subset: data} if nested and not whole else data
    found.data_loaded = True
    found._eval_splits = [task.split]
    return found


def evaluated(model, task):
    # One thread: on a busy machine scikit-learn's wait for each other, spinning.
    with threadpool_limits(1):
        result = mteb.evaluate(
            model,
            offline(task),
            cache=None,
            encode_kwargs={"batch_size": 32, "show_progress_bar": False},
            show_progress_bar=False,
        )
    return result.task_results[0].get_score(splits=[task.split])


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_tasks_score_as_in_mteb(name, ours, theirs):
    size = {"RTE3-fr": 30, "XQuADRetrieval-en": 20}
    task = first(tasks.load([name])[0], size.get(name, 80))
    value = scores.score(ours, task, [768])[768].value
    assert value == pytest.approx(evaluated(theirs, task), abs=5e-4)


@pytest.mark.parametrize("name", LOCAL)
def test_local_tasks_score_as_in_mteb(name, ours, theirs, local):
    task = first(tasks.load([name], local)[0], LOCAL[name])
    value = scores.score(ours, task, [768])[768].value
    assert value == pytest.approx(evaluated(theirs, task), abs=5e-4)


@pytest.mark.parametrize("name", ["XQuADRetrieval-en", "RTE3-fr", "Tatoeba-nov-eng"])
def test_the_mteb_encoder_scores_every_dimension_with_one_forward_pass(
    name, ours, tmp_path, monkeypatch
):
    from mlx_embeddinggemma.bench import mteb_tasks

    task = first(tasks.load([name])[0], 30)
    encoded = []
    encode = ours.encode
    monkeypatch.setattr(ours, "encode", lambda texts, **k: encoded.extend(texts) or encode(texts, **k))
    meta = mteb_tasks.model_meta("demo", ours)
    found = mteb_tasks.evaluate(meta, offline(task), [768, 128], tmp_path)
    assert len(encoded) == len(set(encoded))
    monkeypatch.undo()
    expected = scores.score(ours, task, [768, 128])
    assert found == pytest.approx({dim: s.value for dim, s in expected.items()}, abs=5e-4)
    kept = {path.parent.name for path in tmp_path.rglob(f"{task.task}.json")}
    assert kept == {"embed_dim_768", "embed_dim_128"}


def test_the_mteb_encoder_puts_titles_into_the_prompt(ours):
    from mlx_embeddinggemma.bench.mteb_tasks import Encoder
    from mteb.types import PromptType

    metadata = mteb.get_task("SciFact").metadata
    batch = {"text": ["Rain It falls.", "Sun"], "title": ["Rain", ""], "body": ["It falls.", "Sun"]}
    vectors = Encoder(ours, 256).encode(
        [batch], task_metadata=metadata, prompt_type=PromptType.document
    )
    expected = ours.encode_document(["It falls.", "Sun"], titles=["Rain", None], truncate_dim=256)
    assert np.abs(vectors - expected).max() < 1e-6


def test_presets_are_tasks_that_mteb_knows_and_the_subset_has_all_twelve():
    from mlx_embeddinggemma.bench import mteb_tasks

    names = {
        preset: [task.metadata.name for task in mteb_tasks.find([preset])]
        for preset in mteb_tasks.PRESETS
    }
    assert {preset: len(found) for preset, found in names.items()} == {
        "subset": 25,  # with the 13 of NanoBEIR
        "english": 41,
        "multilingual": 131,
    }
    assert set(mteb_tasks.TWELVE) < set(names["subset"])
    for name in set().union(*names.values()):
        assert mteb.get_task(name).metadata.name == name


def test_an_unreachable_hub_is_one_line_and_no_record(demo, tmp_path):
    argv = ["--model", str(demo), "--tasks", "BIOSSES", "--rounds", "0", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "mlx_embeddinggemma", "bench", *argv],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert "mlx-embeddinggemma: mteb could not evaluate BIOSSES: " in done.stderr.splitlines()[-1]
    assert "--tasks quick" in done.stderr
    assert not list(tmp_path.glob("re*"))
