"""The student: Gemma 3 in transformers, small, with EmbeddingGemma's pooling and head."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import Gemma3TextConfig, Gemma3TextModel

PROMPTS = {
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
HEAD = (256, 512, 768)
CONFIG = {
    "architectures": ["Gemma3TextModel"],
    "model_type": "gemma3_text",
    "vocab_size": 16384,
    "hidden_size": HEAD[0],
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "max_position_embeddings": 2048,
    "sliding_window": 512,
    "_sliding_window_pattern": 4,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-06,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": True,
    "use_cache": True,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "dtype": "bfloat16",
}


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Gemma3TextModel(Gemma3TextConfig(**CONFIG, attn_implementation="eager"))
        self.encoder.float()
        self.dense = nn.ModuleList(
            nn.Linear(n, m, bias=False) for n, m in zip(HEAD[:-1], HEAD[1:], strict=True)
        )
        for name, weight in self.encoder.named_parameters():
            # The network multiplies by 1 + w: at -0.99 every branch starts at a hundredth, so that
            # training starts from the static table's vectors.
            if "post_attention_layernorm" in name or "post_feedforward_layernorm" in name:
                nn.init.constant_(weight, -0.99)

    def start_from(self, table: torch.Tensor, mix: torch.Tensor) -> None:
        """`table` (vocabulary, 255) of lengths up to 1, and the map `mix` (255, 768) to the output.

        The last norm gives every token the same length, so a table alone could not let a rare word
        outweigh a common one in the mean. The last channel takes what a token's vector lacks to
        length 1, and the head ignores it.
        """
        rest = (1 - table.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
        half = nn.init.orthogonal_(torch.empty(HEAD[1], HEAD[0]))
        with torch.no_grad():
            self.encoder.embed_tokens.weight.copy_(torch.cat([table, rest], dim=1))
            self.dense[0].weight.copy_(half)
            self.dense[1].weight.copy_(F.pad(mix.T, (0, 1)) @ half.T)

    def static(self, ids: list[list[int]]) -> torch.Tensor:
        """The output (B, 768) if the layers did nothing."""
        lengths = torch.tensor([len(row) for row in ids])
        owner = torch.repeat_interleave(torch.arange(len(ids)), lengths)
        flat = torch.tensor([i for row in ids for i in row])
        x = self.encoder.norm(self.encoder.embed_tokens(flat))
        y = torch.zeros(len(ids), x.shape[1]).index_add(0, owner, x) / lengths[:, None]
        for dense in self.dense:
            y = dense(y)
        return y

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, L) ids and mask to (B, 768), not normalised."""
        x = self.encoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        real = mask[..., None].float()
        y = (x.float() * real).sum(1) / real.sum(1)
        for dense in self.dense:
            y = dense(y)
        return y


def save(student: Student, folder: Path) -> None:
    """Writes the sentence-transformers layout, weights in bfloat16."""

    def write_json(name: str, content: object) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")

    weights = {k: v.detach().bfloat16().contiguous() for k, v in student.encoder.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    types = "sentence_transformers.models."
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    for i, dense in enumerate(student.dense):
        name = f"{i + 2}_Dense"
        modules.append((name, "Dense"))
        write_json(
            f"{name}/config.json",
            {
                "in_features": dense.in_features,
                "out_features": dense.out_features,
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        )
        head = {"linear.weight": dense.weight.detach().bfloat16().contiguous()}
        save_file(head, folder / name / "model.safetensors", metadata={"format": "pt"})
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    write_json(
        "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": types + kind}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    pooling = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    write_json(
        "1_Pooling/config.json",
        {
            "word_embedding_dimension": HEAD[0],
            **{f"pooling_mode_{mode}": mode == "mean_tokens" for mode in pooling},
            "include_prompt": True,
        },
    )
    write_json("config.json", CONFIG)
    write_json("sentence_bert_config.json", {"max_seq_length": 2048, "do_lower_case": False})
    write_json(
        "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": PROMPTS,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
