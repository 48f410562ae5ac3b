"""Whole runs on a small random checkpoint: what is learned, kept, resumed and written."""

import json
import shutil
import warnings
from pathlib import Path

import checkpoints
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_embeddinggemma import EmbeddingGemma
from mlx_embeddinggemma.checkpoint import open_checkpoint
from mlx_embeddinggemma.cli import main
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.finetune import finetune, state, trainer
from mlx_embeddinggemma.finetune.batches import make_batch
from mlx_embeddinggemma.finetune.data import Dataset, Row, read
from mlx_embeddinggemma.finetune.gradients import loss_and_gradient
from mlx_embeddinggemma.finetune.losses import build
from mlx_embeddinggemma.finetune.mining import mine
from mlx_embeddinggemma.finetune.network import trainable

WORDS = ["red", "blue", "bank", "card", "rain", "money", "loan", "tea"]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return checkpoints.write_tiny(
        tmp_path_factory.mktemp("small") / "small",
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        _sliding_window_pattern=2,
        dense=(64, 256),
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"anchor": f"{a} {b}", "positive": f"the {a} of {b}"} for a in WORDS for b in WORDS[:4]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SETTINGS = {"task": "none", "batch_size": 8, "learning_rate": 3e-3, "steps": 6, "save_every": 2}


def vectors(folder) -> np.ndarray:
    return EmbeddingGemma(folder).encode(["red card", "the tea of rain", "bank"])


@pytest.mark.parametrize("mini_batch_size", [1, 5])
def test_cached_embeddings_give_the_large_batchs_gradient(small, pairs, mini_batch_size):
    model = trainable(open_checkpoint(small), train_table=True)
    batch = make_batch(read(pairs, {}, "none"), np.arange(12), np.random.default_rng(0))
    ids = EmbeddingGemma(small).tokenize(batch.texts)
    loss = build("multiple_negatives_ranking", size=256, spread=0.1)
    value, whole = loss_and_gradient(model, loss, batch, ids)
    again, pieces = loss_and_gradient(model, loss, batch, ids, mini_batch_size)
    assert again.item() == pytest.approx(value.item(), rel=1e-5)
    pieces = dict(tree_flatten(pieces))
    for name, gradient in tree_flatten(whole):
        a, b = np.array(gradient), np.array(pieces[name])
        assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(a), name


@pytest.mark.parametrize("how", [{}, {"lora_rank": 4}, {"quantize": "q4_0"}, {"train_table": True}])
def test_a_run_learns_and_what_it_writes_loads(small, pairs, tmp_path, how):
    report = finetune(small, pairs, tmp_path / "out", eval=pairs, **SETTINGS | how | {"steps": 16})
    first, last = report.log[0], report.log[-1]
    assert last["eval_loss"] < 0.8 * first["eval_loss"]
    assert last["eval_mrr@10"] > first["eval_mrr@10"]
    assert not np.allclose(vectors(tmp_path / "out"), vectors(small), atol=0.01)
    assert not (tmp_path / "out.run").exists()
    record = json.loads((tmp_path / "out" / "finetune.json").read_text())
    assert record["log"] == report.log
    assert "eval_loss" in (tmp_path / "out" / "finetune.svg").read_text()


def test_the_folder_gives_the_same_vectors_in_sentence_transformers(small, pairs, tmp_path):
    reference = pytest.importorskip("reference")
    finetune(small, pairs, tmp_path / "out", **SETTINGS, train_table=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = reference.sentence_transformer(tmp_path / "out")
    texts = ["red card", "the tea of rain", "bank"]
    ours = EmbeddingGemma(tmp_path / "out")
    for name in ("query", "STS"):
        a, b = theirs.encode(texts, prompt_name=name), ours.encode(texts, prompt_name=name)
        assert np.abs(a - b).max() < 1e-5


@pytest.mark.parametrize("recipe", ["q4_0", "4bit"])
def test_after_conversion_a_quantization_aware_run_gives_the_vectors_it_trained(
    small, pairs, tmp_path, recipe
):
    from mlx_embeddinggemma.convert import convert

    seen = {}

    def keep(model, *rest):
        ids = EmbeddingGemma(small).tokenize(["red card", "the tea of rain", "bank"])
        found = [np.array(model(np.array([row], np.int32), np.array([len(row)]))) for row in ids]
        seen["vectors"] = np.concatenate(found)
        return original(model, *rest)

    original = trainer.tensors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "tensors", keep)
        finetune(small, pairs, tmp_path / "out", **SETTINGS, quantize=recipe, train_table=True)
    convert(tmp_path / "out", tmp_path / "packed", recipe=recipe)
    tolerance = 1e-5 if recipe == "q4_0" else 1e-2  # "4bit" writes its norms in bfloat16
    assert np.abs(vectors(tmp_path / "packed") - seen["vectors"]).max() < tolerance


class Stopped(Exception):
    pass


def interrupted(monkeypatch, at: int, error=Stopped):
    """The run dies before the update after `at` steps."""
    original = trainer.Run._step

    def step(self, model, optimizer, number):
        if number == at:
            raise error
        return original(self, model, optimizer, number)

    monkeypatch.setattr(trainer.Run, "_step", step)


@pytest.mark.parametrize("how", [{}, {"lora_rank": 4, "average": 2}])
@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_an_interrupted_run_resumes_bit_for_bit(small, pairs, tmp_path, how, error):
    settings = SETTINGS | how
    finetune(small, pairs, tmp_path / "whole", **settings)
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 5, error)
        with pytest.raises(error):
            finetune(small, pairs, tmp_path / "parts", **settings)
    assert not (tmp_path / "parts").exists()
    report = finetune(small, pairs, tmp_path / "parts", resume=True, **settings)
    assert [entry["step"] for entry in report.log] == [1, 2, 3, 4, 5, 6]
    for file in ("model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"):
        whole, parts = tmp_path / "whole" / file, tmp_path / "parts" / file
        assert whole.read_bytes() == parts.read_bytes(), file


def test_a_loss_of_nan_stops_the_run_and_keeps_the_last_good_checkpoint(small, pairs, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        original = trainer.loss_and_gradient
        calls = []

        def fourth_is_bad(*args):
            calls.append(1)
            value, gradient = original(*args)
            return (value * float("nan") if len(calls) == 4 else value), gradient

        patch.setattr(trainer, "loss_and_gradient", fourth_is_bad)
        with pytest.raises(
            EmbeddingGemmaError, match=r"at step 4: lower --learning-rate.*step-0000002"
        ):
            finetune(small, pairs, tmp_path / "out", **SETTINGS)
    saved = state.checkpoints(tmp_path / "out.run")
    again = SETTINGS | {"learning_rate": 1e-4}
    assert [path.name for path in saved] == ["step-0000002"]
    assert all(np.isfinite(np.array(w)).all() for _, w in tree_flatten(state.load_parameters(saved[0])))
    log = finetune(small, pairs, tmp_path / "out", resume=True, **again).log
    assert [entry["learning_rate"] > 1e-3 for entry in log] == [True] * 2 + [False] * 4


@pytest.mark.parametrize(("steps", "save_every"), [(1, 1), (6, 2)])
def test_an_update_that_breaks_the_network_is_never_kept(small, pairs, tmp_path, steps, save_every):
    original = optim.Adam.apply_gradients

    def last_is_too_large(optimizer, gradient, parameters):
        updated = original(optimizer, gradient, parameters)
        broken = optimizer.step.item() == steps
        return tree_map(lambda weight: weight * 1e38, updated) if broken else updated

    settings = SETTINGS | {"steps": steps, "save_every": save_every}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim.Adam, "apply_gradients", last_is_too_large)
        with pytest.raises(EmbeddingGemmaError, match=rf"vectors became NaN .* at step {steps}: lower"):
            finetune(small, pairs, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    saved = [state.step_of(path) for path in state.checkpoints(tmp_path / "out.run")]
    assert saved == ([4] if steps == 6 else [])
    if saved:
        report = finetune(small, pairs, tmp_path / "out", resume=True, **settings)
        assert report.steps == steps


def test_a_run_that_cannot_be_written_says_where(small, pairs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddingGemmaError, match=r"cannot write .*file/out\.run: Not a directory"):
        finetune(small, pairs, tmp_path / "file" / "out", **SETTINGS)


def test_a_checkpoint_that_fails_to_be_written_is_absent(tmp_path, monkeypatch):
    state.save(tmp_path, 1, {"w": mx.ones(3)}, {"m": mx.ones(3)})
    monkeypatch.setattr(mx, "save_safetensors", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(EmbeddingGemmaError, match="disk full"):
        state.save(tmp_path, 2, {"w": mx.ones(3)}, {"m": mx.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]


def test_the_result_is_the_mean_of_the_last_checkpoints(small, pairs, tmp_path):
    ends = []
    original = state.save
    with pytest.MonkeyPatch.context() as patch:

        def save(folder, step, parameters, *rest, **options):
            ends.append(np.array(parameters["dense"][0]["weight"]))
            return original(folder, step, parameters, *rest, **options)

        patch.setattr(state, "save", save)
        finetune(small, pairs, tmp_path / "out", **SETTINGS, average=2)
    assert len(ends) == 3
    written = open_checkpoint(tmp_path / "out").tensors["dense.0.weight"].read()
    assert np.abs(np.array(written) - (ends[1] + ends[2]) / 2).max() < 1e-7


def test_another_setting_does_not_resume(small, pairs, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 3)
        with pytest.raises(Stopped):
            finetune(small, pairs, tmp_path / "out", **SETTINGS)
    with pytest.raises(
        EmbeddingGemmaError, match="holds an interrupted run: continue it with --resume"
    ):
        finetune(small, pairs, tmp_path / "out", **SETTINGS)
    with pytest.raises(EmbeddingGemmaError, match="other settings: batch_size 8, now 4"):
        finetune(small, pairs, tmp_path / "out", resume=True, **SETTINGS | {"batch_size": 4})


def test_the_rate_rises_linearly_then_falls_by_a_cosine():
    settings = trainer.Settings(learning_rate=1.0, warmup=0.2)
    rates = [trainer.learning_rate(step, 10, settings) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5) and rates[9] == pytest.approx(0.0381, abs=1e-4)


def test_the_first_update_is_adams(small, pairs, tmp_path):
    """Corrected for its start, Adam first moves every weight by the rate, against the gradient."""
    finetune(small, pairs, tmp_path / "out", **SETTINGS | {"steps": 1})
    model = trainable(open_checkpoint(small))
    batch = trainer.batch_at(read(pairs, {}, "none"), 8, 0, 0)
    ids = EmbeddingGemma(small).tokenize(batch.texts)
    loss = build("multiple_negatives_ranking", size=256)
    gradient = np.array(loss_and_gradient(model, loss, batch, ids)[1]["dense"][0]["weight"])
    after = open_checkpoint(tmp_path / "out").tensors["dense.0.weight"].read()
    moved = np.array(after) - np.array(model.dense[0].weight)
    clear = np.abs(gradient) > np.abs(gradient).mean()
    assert np.allclose(moved[clear], -3e-3 * np.sign(gradient[clear]), rtol=1e-3)


def test_gradients_are_cut_at_a_norm_of_1(small, pairs, tmp_path, monkeypatch):
    norms = []

    class Watched(trainer.optim.Adam):
        def apply_gradients(self, gradients, parameters):
            norms.append(np.sqrt(sum((g * g).sum().item() for _, g in tree_flatten(gradients))))
            return super().apply_gradients(gradients, parameters)

    monkeypatch.setattr(trainer.optim, "Adam", Watched)
    report = finetune(small, pairs, tmp_path / "out", **SETTINGS | {"steps": 2})
    assert all(entry["grad_norm"] > 1.5 for entry in report.log)
    assert norms == pytest.approx([1, 1], rel=1e-4)


def test_a_long_text_keeps_its_first_tokens_and_its_end(small, pairs, tmp_path):
    settings = trainer.Settings(task="none", max_length=4)
    run = trainer.Run(small, pairs, tmp_path / "out", None, None, settings, False, False)
    whole = EmbeddingGemma(small).tokenize(["the red of bank"])[0]
    with pytest.warns(
        UserWarning, match=r"text of \d+ tokens is cut to 4, .*: --max-length reads up to"
    ):
        assert len(whole) > 4 and run._tokenize(["the red of bank"]) == [[*whole[:3], 1]]
    assert run._tokenize(["the red of bank"]) == [[*whole[:3], 1]]  # told once


def test_mined_negatives_are_near_and_never_a_known_answer(small, pairs):
    model, data = EmbeddingGemma(small), read(pairs, {}, "none")
    mined = mine(model, data, count=3, margin=1.0)
    for row in mined.rows:
        anchor, positive, *negatives = row.texts
        assert positive not in negatives and len(set(negatives)) == len(negatives) <= 3
        passages = [other.texts[1] for other in data.rows if other.texts[1] != positive]
        similarity = model.similarity(model.encode(anchor), model.encode([positive, *passages]))[0]
        below = sorted((s for s in similarity[1:] if s < similarity[0]), reverse=True)[:3]
        found = model.similarity(model.encode(anchor), model.encode(negatives or [positive]))[0]
        if negatives:
            assert np.allclose(found, below, atol=1e-5)
    assert any(len(row.texts) == 5 for row in mined.rows)


ROWS = {
    "scored": {"sentence1": "red card", "sentence2": "the card", "score": 0.8},
    "labelled": {"text": "red card", "label": "a"},
    "vectors": {"text": "red card", "vector": [0.1] * 256},
}


@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_of_row_trains(small, tmp_path, kind):
    row = ROWS[kind]
    text = next(iter(row))
    other = {"score": 0.1, "label": "b", "vector": [0.2, -0.1] * 128}
    rows = [row, {**row, text: "tea"}]
    rows += [{**r, text: r[text] + " rain", **{k: other[k] for k in other if k in r}} for r in rows]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    report = finetune(small, path, tmp_path / "out", eval=path, learning_rate=1e-3, epochs=4)
    assert report.log[-1]["eval_loss"] < report.log[0]["eval_loss"]


def test_pairs_with_a_teachers_vectors_train_under_a_loss_of_the_callers(small, tmp_path):
    generator = np.random.default_rng(0)
    texts = [(f"the {a} of {b}", f"{b} {a}") for a in WORDS for b in WORDS if a != b]
    rows = [Row(pair, vector=generator.standard_normal((2, 48))) for pair in texts]
    seen = []

    def to_first(columns, targets):
        seen.append((targets.teacher.shape, columns[1].shape))
        return (columns[0] - targets.teacher[:, 0, :1]).square().mean()

    settings = SETTINGS | {"steps": 3, "batch_size": 4, "matryoshka": False, "loss": to_first}
    finetune(small, Dataset("vectors", rows), tmp_path / "out", **settings)
    assert set(seen) == {((4, 2, 48), (4, 256))}
    recorded = json.loads((tmp_path / "out" / "finetune.json").read_text())["settings"]
    assert recorded["loss"] == "to_first" and len(recorded["train"]) == 64


@pytest.mark.parametrize(("kind", "rows"), [("vectors", []), ("songs", [Row(("la",))])])
def test_a_dataset_of_nothing_or_of_no_known_kind_is_refused(small, tmp_path, kind, rows):
    with pytest.raises(
        EmbeddingGemmaError, match=f"expected a dataset of .* {len(rows)} rows of '{kind}'"
    ):
        finetune(small, Dataset(kind, rows), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_several_recipes_take_turns(small, pairs, tmp_path, monkeypatch):
    from mlx_embeddinggemma.finetune import grids

    rounded = []
    for name in ("affine", "q4_0"):
        original = getattr(grids, name)

        def noted(weight, *args, name=name, original=original, **named):
            rounded.append(name)
            return original(weight, *args, **named)

        monkeypatch.setattr(grids, name, noted)
    steps = []
    whole_step = trainer.Run._step

    def step(run, *args):
        rounded.clear()
        entry = whole_step(run, *args)
        steps.append(set(rounded))
        return entry

    monkeypatch.setattr(trainer.Run, "_step", step)
    settings = SETTINGS | {"steps": 6, "quantize": "fp32,4bit,q4_0", "train_table": True}
    finetune(small, pairs, tmp_path / "out", **settings, quantize_after=1 / 6)
    assert steps == [set(), {"affine"}, {"q4_0"}, set(), {"affine"}, {"q4_0"}]


def test_texts_alone_teach_the_rounded_network_its_own_float_vectors(small, tmp_path):
    from mlx_embeddinggemma.convert import convert

    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"the {a} of {b}"}) + "\n" for a in WORDS for b in WORDS)
    )
    settings = {"learning_rate": 1e-3, "epochs": 100, "quantize": "q4_0", "train_table": True}
    report = finetune(small, path, tmp_path / "out", eval=path, **settings)
    folders = {"plain": small, "taught": tmp_path / "out"}
    drop = {}
    for name, folder in folders.items():
        convert(folder, tmp_path / name, recipe="q4_0")
        drop[name] = 1 - (vectors(tmp_path / name) * vectors(small)).sum(axis=1).mean()
    assert 0 < drop["taught"] < 0.5 * drop["plain"]
    assert report.log[-1]["eval_loss"] < 0.5 * report.log[0]["eval_loss"]
    for quantize in (None, "fp32"):
        with pytest.raises(
            EmbeddingGemmaError, match="expected --quantize 4bit, or .* rows of texts alone"
        ):
            finetune(small, path, tmp_path / "floats", quantize=quantize)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantize", "4bit,3bit"], "expected quantize fp32, 4bit, 8bit, mixed, q4_0, q8_0, or"),
        (["--loss", "cosent"], "expected loss multiple_negatives_ranking for pairs rows, got 'cosent'"),
        (["--batch-size", "1"], "expected batch_size from 2 to 1,000,000, got 1"),
        (["--resume"], "no run to resume"),
        (["--eval", "absent.jsonl"], "cannot read absent.jsonl"),
    ],
)
def test_a_mistake_gets_one_line_before_training(small, pairs, tmp_path, capsys, flags, message):
    out = tmp_path / "out"
    command = ["finetune", "--model", str(small), "--train", str(pairs), "--output", str(out), *flags]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not out.exists() and not (tmp_path / "out.run").exists()


def test_the_command_trains_and_says_what_came_of_it(small, pairs, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["finetune", "--model", str(small), "--train", str(pairs), "--output", str(out)]
    command += ["--eval", str(pairs), "--batch-size", "8", "--learning-rate", "3e-3", "--average", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "4 steps" in printed and "held-out accuracy: " in printed
    assert main(command) == 1  # it exists now
    shutil.rmtree(out)
