"""The comparison of engines: what is wrong or absent is seen, not timed."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from mlx_embeddinggemma.bench import compare, engines, readme, speed

from mlx_embeddinggemma import EmbeddingGemma

TEXTS = ["Mars is the red planet.", "A short text", "Ein anderer Satz, etwas länger als der erste."]


@pytest.fixture
def server(demo):
    """A server with the interfaces of Ollama, text-embeddings-inference and OpenAI; yields its URL."""
    model = EmbeddingGemma(demo)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = asked.get("model", "gemma") == "gemma" and self.path in answers
            body = json.dumps(answers[self.path](asked) if known else {"error": "no such model"})
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    def encode(texts):
        return model.encode(texts).tolist()

    def tei(asked):
        assert len(asked["inputs"]) <= 32  # its default limit
        return encode(asked["inputs"])

    def openai(asked):
        rows = [{"index": i, "embedding": row} for i, row in enumerate(encode(asked["input"]))]
        return {"data": rows[::-1]}  # in no promised order

    answers = {
        "/api/embed": lambda asked: {"embeddings": encode(asked["input"])},
        "/embed": tei,
        "/v1/embeddings": openai,
    }
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_engines_take_turns_and_a_wrong_vector_shows_in_the_cosine(tiny, demo, tmp_path):
    names = [f"ours={demo}", f"ours={tiny}"]
    same, other = compare.compare(names, {"three": TEXTS}, 2, tmp_path)
    short = 2 * compare.IN_A_TURN  # two turns
    assert 2 <= len(same.samples["three"]) <= short and 2 <= len(other.samples["three"]) <= short
    assert same.worst_cosine["three"] > 0.999999 > 0.9 > other.worst_cosine["three"]
    assert same.cold_start > 0 and same.peak_mb > 10
    json.dumps([same.record(), other.record()])


def test_vectors_of_another_size_or_scale_do_not_pass_for_ours():
    ours = np.eye(3, 8, dtype=np.float32)
    assert compare.worst_cosine(5 * ours, ours) == 1
    assert compare.worst_cosine(ours[:, :4], ours) == 0


def test_an_engine_that_does_not_start_is_skipped_with_its_reason(demo, tmp_path, capsys):
    names = [f"ours={demo}", f"ours={tmp_path / 'absent'}", "tei=http://127.0.0.1:9"]
    assert len(compare.compare(names, {"three": TEXTS}, 1, tmp_path)) == 1
    first, second = [line for line in capsys.readouterr().err.splitlines() if "skipped: " in line]
    assert "absent" in first
    assert "no answer from tei (http://127.0.0.1:9)" in second


def test_an_engine_that_is_not_installed_is_named_with_its_pip_command(monkeypatch, demo):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(SystemExit, match="llama_cpp.*: pip install llama-cpp-python"):
        engines.main(["llama.cpp", "model.gguf"])


def test_servers_are_compared_by_their_own_interfaces(server, demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OLLAMA_HOST", server.removeprefix("http://"))
    names = ["ollama=gemma", f"tei={server}", f"openai={server}/v1#gemma", "ollama=another"]
    texts = [f"{text} {i}" for i in range(15) for text in TEXTS]
    found = compare.compare([f"ours={demo}", *names], {"texts": texts}, 1, tmp_path)
    assert [one.engine for one in found] == ["ours", "ollama", "tei", "openai"]
    assert all(one.worst_cosine["texts"] > 0.999999 for one in found)
    # Their memory and start are not those of the process that asks them.
    assert [one.peak_mb is None for one in found] == [False, True, True, True]
    assert [one.cold_start is None for one in found] == [False, True, True, True]
    assert "ollama=another: skipped: no answer" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_onnx_runtime_agrees_on_padded_batches(tiny, tmp_path):
    for name in ("torch", "sentence_transformers", "onnxscript", "onnxruntime", "tokenizers"):
        pytest.importorskip(name, reason="needs onnxruntime and onnxscript")
    from export_onnx import export

    folder = export(tiny, tmp_path / "onnx")
    texts = [*TEXTS, "a much longer text, over the window of the layers " * 8]
    expected = EmbeddingGemma(tiny).encode(texts)
    assert compare.worst_cosine(engines.onnx(str(folder))(texts), expected) > 0.999999
    alone = engines.onnx(str(folder / "onnx" / "model.onnx"))
    assert compare.worst_cosine(alone(texts), expected) > 0.999999


def test_a_folder_stands_for_every_engine_that_is_found(demo, tmp_path, monkeypatch, capsys):
    """The record is for sharing: it holds raw samples and versions, and no path."""
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS * 9), encoding="utf-8")
    monkeypatch.setattr(compare, "FOUND", ("ours={0}", "onnx={0}"))
    lengths = ["--lengths", "16", "64", "2x16"]
    argv = [str(demo), "--texts", str(file), *lengths, "--rounds", "2", "--pause", "0"]
    monkeypatch.setattr(sys, "argv", ["compare", *argv, "--output", str(tmp_path / "a" / "c.json")])
    compare.main()
    said = capsys.readouterr()
    assert f"onnx={demo}: skipped: no file" in said.err
    record = json.loads((tmp_path / "a" / "c.json").read_text())
    assert compare.show(record) in said.out
    assert list(record["tokens"]) == ["16 tokens", "64 tokens", "2 x 16 tokens", "27 texts"]
    assert record["model"]["sha256"] and record["machine"]["chip"] and record["versions"]["mlx"]
    (ours,) = record["contenders"]
    assert all(2 <= len(samples) <= 2 * compare.IN_A_TURN for samples in ours["samples_s"].values())
    marked = "# A\n<!-- generated: engines a/c.json -->\nold\n<!-- end -->\nB\n"
    text = readme.regenerated(marked, tmp_path)
    assert text.startswith("# A\n") and text.endswith("\nB\n") and "old" not in text
    for row in ("| 27 texts (", "| 64 tokens, ms", "peak memory, MB", "start to first vector, s"):
        assert row in text
    assert readme.regenerated(text, tmp_path) == text
    assert str(tmp_path) not in json.dumps(record) and str(demo) not in json.dumps(record)


def test_a_file_too_short_for_the_asked_length_is_refused(demo, tmp_path, monkeypatch, capsys):
    (tmp_path / "texts.txt").write_text("Mars is red.", encoding="utf-8")
    argv = ["compare", f"ours={demo}", "--texts", str(tmp_path / "texts.txt"), "--lengths", "256"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        compare.main()
    assert "too short for a text of 256 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "packed", "said"),
    [
        ("demo", None, "No such file"),
        ("demo", b"", "texts.txt is empty"),
        ("demo", b"\x93NUMPY", "can't decode byte 0x93"),
        ("nowhere", b"Mars is red.", "no folder nowhere"),
    ],
)
def test_wrong_files_are_refused_in_one_line(model, packed, said, tmp_path, monkeypatch, capsys):
    if packed is not None:
        (tmp_path / "texts.txt").write_bytes(packed)
    argv = ["compare", f"ours={model}", "--texts", str(tmp_path / "texts.txt")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        compare.main()
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("tokens", [6, 16, 40])
def test_a_text_of_so_many_tokens(demo, tokens):
    model = EmbeddingGemma(demo)
    words = " ".join(TEXTS * 9).split()
    text = speed.text_of(model, tokens, words)
    assert model.count_tokens([text])[0] <= tokens
    longer = " ".join(words[: len(text.split()) + 1])
    assert model.count_tokens([longer])[0] > tokens
