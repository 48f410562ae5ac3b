"""--upload-repo against a hub on this machine that answers what the real one answers."""

import base64
import http.server
import json
import threading
from pathlib import Path

import pytest
from mlx_embeddinggemma.convert import convert
from mlx_embeddinggemma.convert.upload import upload

from mlx_embeddinggemma import EmbeddingGemmaError


class Hub(http.server.BaseHTTPRequestHandler):
    """Takes repositories and commits, whose files it keeps in `server.files`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = f"http://127.0.0.1:{self.server.server_port}"
        if self.server.refuses:
            return self.answer(403, {"error": "You may not"})
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self.answer(200, {"url": f"{address}/me/small"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            regular = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            return self.answer(200, {"files": regular})
        assert self.path == "/api/models/me/small/commit/main", self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer(200, {"commitUrl": f"{address}/me/small/commit/1", "commitOid": "1"})

    def do_GET(self):
        self.answer(403 if self.server.refuses else 200, {"id": "me/small", "sha": "0"})

    def answer(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.created, server.refuses = {}, [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    hub_api = pytest.importorskip("huggingface_hub").HfApi
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub_api(endpoint=address, token="hf_x"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "small"
    path.mkdir()
    (path / "README.md").write_text("---\nlicense: gemma\n---\n", encoding="utf-8")
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 9)
    return path


def test_every_file_of_the_folder_arrives_byte_for_byte(hub, folder):
    assert upload(folder, "me/small").endswith("/commit/1")
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [(row["name"], row.get("organization")) for row in hub.created] == [("small", "me")]


def test_a_refusal_is_one_line_and_the_folder_stays(hub, folder):
    hub.refuses = True
    with pytest.raises(EmbeddingGemmaError, match="hf auth login") as error:
        upload(folder, "me/small")
    assert "\n" not in str(error.value) and len(list(folder.iterdir())) == 3


def test_an_unreachable_hub_is_one_line(hub, folder):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(EmbeddingGemmaError, match="uploading it to me/small failed") as error:
        upload(folder, "me/small")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["small", "a/b/c", "me/", "me/sm all", "/small"])
def test_no_work_is_done_for_what_is_no_repository(name, tiny, tmp_path):
    with pytest.raises(EmbeddingGemmaError, match="expected a repository"):
        convert(tiny, tmp_path / "out", upload_repo=name)
    assert not list(tmp_path.iterdir())
