"""A model goes to other processes, and is copied, by its folder and settings."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import checkpoints
import numpy as np
import pytest
from vectors import assert_near

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError

TEXTS = ["the one", "the other", "x" * 40]


@pytest.fixture(scope="module")
def model(tiny) -> EmbeddingGemma:
    return EmbeddingGemma(tiny)


def again(model: EmbeddingGemma, protocol: int = pickle.DEFAULT_PROTOCOL) -> EmbeddingGemma:
    return pickle.loads(pickle.dumps(model, protocol))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_model_gives_the_same_vectors(model, protocol):
    data = pickle.dumps(model, protocol)
    assert len(data) < 4096  # no weights
    assert_near(pickle.loads(data).encode(TEXTS), model.encode(TEXTS))


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, again])
def test_copies_are_models_of_their_own(model, twin):
    other = twin(model)
    assert type(other) is EmbeddingGemma and other is not model
    assert_near(other.encode(TEXTS), model.encode(TEXTS))
    other.prompts["query"] = "changed: "
    other.max_seq_length = 9
    assert model.prompts["query"] != "changed: " and model.max_length == 2048


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, again])
@pytest.mark.filterwarnings("ignore:.*were cut")
def test_settings_go_with_it(tiny, tmp_path, twin):
    folder = checkpoints.as_mlx_community(tiny, tmp_path / "m", bits=8)
    model = EmbeddingGemma(folder, truncate_dim=256, dtype="bfloat16", max_length=16, dequantize=True)
    model.prompts["mine"] = "mine: "
    del model.prompts["STS"]
    model.default_prompt_name = "mine"
    model.similarity_fn_name = "dot"
    other = twin(model)
    for name in ("folder", "dimensions", "dtype", "max_length", "prompts", "default_prompt_name"):
        assert getattr(other, name) == getattr(model, name), name
    assert other.similarity_fn_name == "dot" and other.truncate_dim == 256
    assert other._dequantize
    vectors = model.encode(TEXTS)
    assert np.abs(other.encode(TEXTS) - vectors).max() < 1e-2  # bfloat16
    assert vectors.shape == (3, 256)


def test_a_copy_of_a_copy(model):
    assert_near(again(again(model)).encode("a"), model.encode("a"))


def test_a_subclass_stays_one(tiny):
    assert type(again(Named(tiny))) is Named


class Named(EmbeddingGemma):
    """Of a module's own, as pickle wants it."""


def test_a_relative_folder_is_found_from_elsewhere(tiny, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny.parent)
    data = pickle.dumps(EmbeddingGemma(tiny.name))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(data).encode("a").shape == (768,)


def test_the_demo_goes_by_its_folder(monkeypatch):
    assert again(EmbeddingGemma("demo")).folder.samefile(EmbeddingGemma("demo").folder)


def test_a_folder_that_is_gone_is_one_line(tiny, tmp_path):
    folder = checkpoints.as_mlx_community(tiny, tmp_path / "m")
    data = pickle.dumps(EmbeddingGemma(folder))
    folder.rename(tmp_path / "moved")
    with pytest.raises(EmbeddingGemmaError, match="no folder .*/m;"):
        pickle.loads(data)


def test_errors_travel_too():
    error = again(EmbeddingGemmaError("text 3 came out as NaN"))
    assert type(error) is EmbeddingGemmaError and str(error) == "text 3 came out as NaN"


def test_the_bound_methods_travel(model):
    vectors = pickle.loads(pickle.dumps(model.encode_query))(TEXTS)
    assert_near(vectors, model.encode_query(TEXTS))


def test_a_pool_of_spawned_processes(model):
    texts = [f"text {i}" for i in range(4)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        vectors = list(pool.map(model.encode, texts))
        with pytest.raises(TypeError, match="text 0: expected a string, got int"):
            pool.submit(model.encode, [3]).result()
    assert_near(np.stack(vectors), model.encode(texts))


def test_another_interpreter(model, tmp_path):
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(model))
    code = (
        "import pickle, sys; model = pickle.load(open(sys.argv[1], 'rb'));"
        "print(*model.encode('the one'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, env=os.environ
    )
    assert_near(np.array(done.stdout.split(), float), model.encode("the one"))


def test_joblib(model):
    joblib = pytest.importorskip("joblib")
    jobs = (joblib.delayed(model.encode)([text]) for text in TEXTS)
    vectors = np.concatenate(joblib.Parallel(n_jobs=2)(jobs))
    assert_near(vectors, model.encode(TEXTS))


def test_scikit_learn_clones_what_holds_it(model):
    base = pytest.importorskip("sklearn.base", reason="needs the extra `bench`")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    pipeline = make_pipeline(FunctionTransformer(model.encode))
    copied = base.clone(pipeline)
    assert_near(copied.fit_transform(TEXTS), model.encode(TEXTS))
    other = base.clone(model, safe=False)
    assert_near(other.encode(TEXTS), model.encode(TEXTS))
