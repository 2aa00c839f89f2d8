"""A seeded random jina-reranker-v3, and its authors' rule over transformers' Qwen3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from torch import nn

from tests.checkpoints import Storage, randomise, store, write_qwen_tokenizer
from tests.decoder_checkpoints import PLAIN, SIZE
from tests.encoder_checkpoints import edit

DOCUMENT_MARK, QUERY_MARK = "<|embed_token|>", "<|rerank_token|>"
SYSTEM = (
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are to "
    "the query. If the query is a question, how relevant a passage is depends on how well it answers the question. If "
    "not, try to analyze the intent of the query and assess how well each passage satisfies the intent. If an "
    "instruction is provided, you should follow the instruction when determining the ranking."
)


def projector(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, hidden // 2, bias=False), nn.ReLU(), nn.Linear(hidden // 2, 512, bias=False))


def jina_v3(folder: Path, *, storage: Storage = PLAIN) -> Path:
    config = transformers.Qwen3Config(
        vocab_size=151936, max_position_embeddings=131072, tie_word_embeddings=True, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, head_dim=16, bos_token_id=151643,
        eos_token_id=151645, pad_token_id=151643, **SIZE,
    )  # fmt: skip
    model, head = transformers.Qwen3ForCausalLM(config), projector(config.hidden_size)
    randomise(model, 0.8)
    randomise(head, 1.4, seed=1)
    with torch.no_grad():
        # What the marks themselves are is small beside what they have seen.
        model.model.embed_tokens.weight[[151670, 151671]] *= 0.05
    store(model, folder, storage)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in head.state_dict().items():
        tensors[f"projector.{name}"] = weight.to(getattr(torch, storage.dtype))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, architectures=["JinaForRanking"])
    write_qwen_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = ("<|score_token|>", DOCUMENT_MARK, QUERY_MARK)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    assert tokenizer.token_to_id(QUERY_MARK) == 151671
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


class Jina:
    """`JinaForRanking` of its authors' modeling.py, of transformers' Qwen3 in float32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.Qwen3Model.from_pretrained(folder, dtype=torch.float32).eval()
        self.projector = projector(self.model.config.hidden_size)
        tensors = load_file(folder / "model.safetensors")
        self.projector.load_state_dict(
            {name: tensors[f"projector.{name}"].float() for name in ("0.weight", "2.weight")}
        )
        self.blocks: list[int] = []

    def prompt(self, query: str, documents: list[str], instruction: str | None) -> str:
        text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nI will provide you with {len(documents)} "
        text += "passages, each indicated by a numerical identifier. Rank the passages based on their relevance to "
        text += f"query: {query}\n"
        if instruction:
            text += f"<instruct>\n{instruction}\n</instruct>\n"
        passages = [f'<passage id="{i}">\n{text}{DOCUMENT_MARK}\n</passage>' for i, text in enumerate(documents)]
        text += "\n".join(passages) + f"\n<query>\n{query}{QUERY_MARK}\n</query>"
        return text + "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    @torch.inference_mode()
    def block(self, query: str, documents: list[str], instruction: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of a prompt's documents, and of its query."""
        ids = self.tokenizer(self.prompt(query, documents, instruction), return_tensors="pt")["input_ids"]
        states = self.model(input_ids=ids).last_hidden_state
        return self.projector(states[ids == 151670]), self.projector(states[ids == 151671])

    def fit(self, text: str, limit: int) -> tuple[str, int]:
        ids = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return (self.tokenizer.decode(ids) if len(ids) >= limit else text), len(ids)

    def scores(
        self, query: str, documents: list[str], instruction: str | None = None, *, max_length: int = 131072,
        max_query_length: int = 512, max_doc_length: int = 2048,
    ) -> list[float]:  # fmt: skip
        """`rerank`, in the order of the documents; `blocks` are the documents of each prompt then."""
        fitting = [self.fit(document, max_doc_length) for document in documents]
        query, query_length = self.fit(query, max_query_length)
        blocks: list[list[str]] = [[]]
        capacity = max_length - 2 * query_length
        for document, length in fitting:
            blocks[-1].append(document)
            capacity -= length
            if len(blocks[-1]) >= 125 or capacity <= max_doc_length:
                blocks.append([])
                capacity = max_length - 2 * query_length
        return self.blended(query, [block for block in blocks if block], instruction)

    def blended(self, query: str, blocks: list[list[str]], instruction: str | None = None) -> list[float]:
        """The scores of documents that are read block by block."""
        self.blocks = [len(block) for block in blocks]
        vectors, queries, weights = [], [], []
        for block in blocks:
            own, asked = self.block(query, block, instruction)
            vectors.extend(own.numpy())
            queries.append(asked.numpy())
            weights.append(float(((1 + torch.cosine_similarity(own, asked, dim=-1)) / 2).max()))
        mean = np.average(np.array(queries), axis=0, weights=weights)[0]
        found = np.array(vectors)
        scores: list[float] = (found @ mean / (np.linalg.norm(mean) * np.linalg.norm(found, axis=1))).tolist()
        return scores
