"""A checkpoint as ONNX, in the layout of onnx-community/embeddinggemma-300m-ONNX.

    python tests/export_onnx.py FOLDER OUTPUT
    python -m mlx_embeddinggemma.bench.compare ours=FOLDER onnx=OUTPUT --texts FILE

Writes OUTPUT/tokenizer.json and OUTPUT/onnx/model.onnx: input_ids and attention_mask to
last_hidden_state and sentence_embedding. Needs torch, sentence-transformers, onnx and onnxscript.
"""

import shutil
import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer


class Vectors(torch.nn.Module):
    """Token ids to token vectors and to the sentence's, through the pooling and the dense head."""

    def __init__(self, model: SentenceTransformer):
        super().__init__()
        self.network = model[0].auto_model
        self.dense = torch.nn.Sequential(*(part.linear for part in list(model)[2:-1]))

    def forward(self, input_ids, attention_mask):
        hidden = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return hidden, torch.nn.functional.normalize(self.dense(mean), dim=-1)


def export(folder: Path, output: Path) -> Path:
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs=options)
    ids = torch.tensor([[2, 300, 301, 302, 1], [2, 300, 1, 0, 0]])
    (output / "onnx").mkdir(parents=True)
    shutil.copy(folder / "tokenizer.json", output)
    size = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=2048)}
    with torch.no_grad():
        torch.onnx.export(
            Vectors(model).eval(),
            (ids, (ids > 0).long()),
            output / "onnx" / "model.onnx",
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state", "sentence_embedding"],
            dynamic_shapes=(size, size),
            dynamo=True,
            verbose=False,
        )
    return output


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
