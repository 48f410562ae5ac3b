"""The demo checkpoint's recipe: what the student is before it learns, and how texts find partners."""

import importlib.util
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_embeddinggemma import EmbeddingGemma


def module(name):
    """A file of `training/`, which is not a package."""
    path = Path(__file__).parent.parent / "training" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"training_{name}", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def before(demo, tmp_path_factory):
    """The student with a random table, its table (V, 255) and what the head makes of it (255, 768)."""
    student, rng = module("student"), np.random.default_rng(0)
    table = rng.standard_normal((student.VOCABULARY, student.WIDTH - 1))
    table *= rng.random((len(table), 1)) / np.linalg.norm(table, axis=1, keepdims=True)
    mix = rng.standard_normal((student.WIDTH - 1, student.DENSE[-1]))
    weights = student.static_weights(table, mix, 1)
    folder = tmp_path_factory.mktemp("student")
    student.save(weights | student.layer_weights(1), folder, mx.float32)
    for path in demo.glob("*token*"):
        shutil.copy(path, folder)
    return folder, table, mix, weights


TEXTS = ["A dog runs.", "Two children are playing chess in the park.", "stocks fall"]


def test_a_text_begins_as_the_mean_of_its_pieces_rare_ones_weighing_more(before):
    folder, table, mix, _ = before
    model = EmbeddingGemma(folder)
    expected = np.array([(table[ids] @ mix).mean(axis=0) for ids in model.tokenize(TEXTS)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    cosines = (model.encode(TEXTS) * expected).sum(axis=1)
    assert cosines.min() > 0.99  # the layers are nearly silent, not quite


def test_the_first_stage_computes_what_the_network_does_without_its_layers(before):
    folder, table, mix, weights = before
    ids = EmbeddingGemma(folder).tokenize(TEXTS)
    owner = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
    batch = map(mx.array, (np.concatenate(ids), owner, np.array([len(row) for row in ids])))
    found = np.array(module("static").vectors(weights, *batch))
    direct = np.array([(table[row] @ mix).mean(axis=0) for row in ids])
    length = np.sqrt(256 / (1 + 256 * 1e-6))  # what the norm makes of a row of length 1
    assert np.abs(found / length - direct).max() < 1e-5 * np.abs(direct).max()


def test_what_is_saved_is_read_again(before):
    folder, _, _, weights = before
    found = module("student").load(folder)
    assert all(np.array_equal(np.array(found[name]), np.array(w)) for name, w in weights.items())


def test_partners_are_near_and_each_text_has_one():
    real, rng = module("real"), np.random.default_rng(3)
    centres = rng.standard_normal((50, 64))
    vectors = np.repeat(centres, 8, axis=0) + 0.3 * rng.standard_normal((400, 64))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = real.near(vectors, 1).reshape(-1, 2)
    assert sorted(pairs.ravel()) == list(range(400))
    assert (pairs[:, 0] // 8 == pairs[:, 1] // 8).mean() > 0.5  # of one centre; by chance 0.02
    assert not np.array_equal(pairs, real.near(vectors, 2).reshape(-1, 2))


def test_a_misjudged_partner_is_one_whose_cosine_the_student_gets_wrong():
    real, rng = module("real"), np.random.default_rng(4)
    teacher = rng.standard_normal((300, 64))
    student = teacher + 0.5 * rng.standard_normal((300, 64))
    teacher, student = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (teacher, student))
    errors = np.abs(student @ student.T - teacher @ teacher.T)
    found = errors[tuple(real.misjudged(student, teacher, 1).reshape(-1, 2).T)]
    assert np.median(found) > np.quantile(errors, 0.95)


def test_texts_of_a_task_are_left_out_however_they_are_spelled():
    real = module("real")
    texts = ["A dog runs.", "a dog, runs", "A cat sleeps.", "Rain."]
    assert real.unseen(texts, {real.key("a DOG runs!")}) == ["A cat sleeps.", "Rain."]


def test_how_a_student_lays_the_teacher_out_is_found_again():
    targets, rng = module("targets"), np.random.default_rng(5)
    teacher = rng.standard_normal((4000, 384)) * np.linspace(1, 0.1, 384)
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    _, spread = targets.layout(np.tile(teacher, (13, 1)), rng)
    student = teacher @ spread + 0.02 * rng.standard_normal((4000, 768))
    student /= np.linalg.norm(student, axis=1, keepdims=True)
    found = targets.laid_out(student, teacher)
    assert np.abs(found @ found.T - np.eye(384)).max() < 1e-5  # so it keeps cosines
    assert ((teacher @ found) * (teacher @ spread)).sum(axis=1).min() > 0.97


def test_the_common_direction_becomes_longer_and_variances_more_alike():
    targets, rng = module("targets"), np.random.default_rng(6)
    spread = np.linalg.qr(rng.standard_normal((768, 384)))[0].T
    common = np.eye(384)[7]
    vectors = (rng.standard_normal((4000, 384)) * np.linspace(2, 0.5, 384) + 3 * common) @ spread
    found = vectors @ targets.shaped(vectors, spread)
    mean = vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    assert np.allclose(found @ mean, targets.LENGTHENED * (vectors @ mean), atol=1e-3)
    spectrum = [np.linalg.svd(x - np.outer(x @ mean, mean))[1][:383] for x in (vectors, found)]
    evened = np.log(spectrum[1]).std() / np.log(spectrum[0]).std()
    assert evened == pytest.approx(1 - targets.EVENED, abs=0.01)


def test_a_translation_is_found_beside_what_explains_the_same_command(tmp_path):
    def page(lang, description, *examples):
        examples = [{"code": code, "text": text} for code, text in examples]
        row = {"lang": lang, "platform": "common", "command": "ls", "examples": examples}
        return json.dumps(row | {"description": description}) + "\n"

    pages = [
        page("en", "List files.", ("ls", "List"), ("ls -a {{folder}}", "All of them"), ("ls -l", "ls")),
        page("de", "Dateien.", ("ls -a {{Ordner}}", "Alle"), ("ls -Z", "Veraltet"), ("ls -l", "ls")),
        page("ko", "목록.", ("ls", "보기")),
    ]
    (tmp_path / "tldr-pages.multilingual.jsonl").write_text("".join(pages), encoding="utf-8")
    found = module("corpus").translations(tmp_path)
    assert sorted(found) == [("Alle", "All of them"), ("Dateien.", "List files.")]


def test_texts_settle_on_their_own_vectors_and_translations_lean_to_their_originals(demo, monkeypatch):
    settling, model = module("settling"), EmbeddingGemma(demo)
    monkeypatch.setattr(settling, "ENGLISH", 3)
    monkeypatch.setattr(settling, "TRANSLATED", 1)
    rows = settling.dataset(model, TEXTS, [("Ein Hund rennt.", "A dog runs.")], 1).rows
    own = model.encode([row.texts[0] for row in rows])
    assert np.abs(own[:3] - [row.vector for row in rows[:3]]).max() < 1e-6
    original = model.encode([rows[3].texts[0].replace("Ein Hund rennt.", "A dog runs.")])[0]
    share = settling.ORIGINALS_SHARE
    assert np.abs((1 - share) * own[3] + share * original - rows[3].vector).max() < 1e-6
