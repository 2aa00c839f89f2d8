"""Score by a chat template of your own, beside the built-in prompt.

usage: python examples/custom_template.py [MODEL]

MODEL is a decoder, by default Qwen/Qwen3-Reranker-0.6B. A server takes the same file:

    rerankd serve MODEL --chat-template examples/custom_template.jinja

A reranker was trained on its own prompt: measure before you change it (`rerankd eval`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rerankd import Reranker

TEMPLATE = Path(__file__).with_name("custom_template.jinja")
QUERY = "German"
DOCUMENTS = ["Der Bär schläft.", "The bear sleeps.", "L'ours dort."]


def main(model: str) -> None:
    for name, template in (("built-in", None), (TEMPLATE.name, TEMPLATE)):
        with Reranker(model, chat_template=template) as reranker:
            print(name)
            for document in reranker.rerank(QUERY, DOCUMENTS):
                print(f"{document.score:.4f}  {DOCUMENTS[document.index]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="Qwen/Qwen3-Reranker-0.6B", help="a folder, or an id on the hub")
    given = parser.parse_args()
    main(given.model)
