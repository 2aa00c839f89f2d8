"""A classifier of labels that are no relevance scores by the label that the user names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from rerankd import Reranker
from rerankd.cli.main import _rerankd
from rerankd.core import ModelError
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.options import LoadOptions
from tests import checkpoints
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.encoder_checkpoints import deberta_v2, edit
from tests.modernbert_checkpoints import modernbert
from tests.test_scores import PAIRS, largest_difference, spread

SOME = PAIRS[::2]
NLI = {"0": "contradiction", "1": "entailment", "2": "neutral"}


def nli(folder: Path, *, family: Callable[..., Path] = deberta_v2, storage: Storage = Storage()) -> Path:  # noqa: B008
    family(folder, labels=3, storage=storage)
    edit(folder, id2label=NLI, label2id={name: int(i) for i, name in NLI.items()})
    return folder


@torch.inference_mode()
def reference(folder: Path, label: int, alone: bool = False) -> list[float]:
    """The probability of a label by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for query, document in SOME:
        logits = model(**tokenizer(query, document, return_tensors="pt", truncation=True)).logits[0]
        scores.append(float((logits.sigmoid() if alone else logits.softmax(0))[label]))
    return scores


def scores_of(folder: Path, label: str, dtype: str = "float32") -> list[float]:
    with Reranker(folder, device="cpu", dtype=dtype, label=label) as reranker:
        return reranker.score(SOME)


@pytest.mark.parametrize(
    ("family", "label", "place"),
    [(deberta_v2, "entailment", 1), (modernbert, "Neutral", 2)],
)
def test_the_score_is_the_probability_of_the_label(
    make_checkpoint: MakeCheckpoint, family: Any, label: str, place: int
) -> None:
    folder = make_checkpoint(nli, family=family)
    expected = reference(folder, place)
    assert len(SOME) >= 40
    assert spread(expected) >= 0.2
    assert largest_difference(scores_of(folder, label), expected) <= 1e-5


def test_bfloat16_scores_are_near(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(nli, storage=Storage(dtype="bfloat16"))
    expected = scores_of(folder, "entailment")
    assert spread(expected) >= 0.2
    assert largest_difference(scores_of(folder, "entailment", "bfloat16"), expected) <= 0.01


def test_labels_that_do_not_exclude_one_another(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(nli), tmp_path / "model"))
    edit(folder, problem_type="multi_label_classification")
    expected = reference(folder, 1, alone=True)
    assert largest_difference(expected, reference(folder, 1)) > 0.01
    assert largest_difference(scores_of(folder, "entailment"), expected) <= 1e-5


def test_two_labels_by_name(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(checkpoints.bert, labels=2), tmp_path / "model"))
    assert largest_difference(scores_of(folder, "LABEL_1"), reference(folder, 1)) <= 1e-5, "without names it has these"
    edit(folder, id2label={"0": "entailment", "1": "not_entailment"})
    with pytest.raises(ModelError, match="Name the one whose probability is the score"):
        Reranker(folder, device="cpu")
    assert largest_difference(scores_of(folder, "entailment"), reference(folder, 0)) <= 1e-5


def refusal(folder: Path, label: str | None, **options: Any) -> str:
    with pytest.raises(ModelError) as raised:
        inspect(plan(LoadOptions(str(folder), device="cpu", label=label, **options)))
    return str(raised.value)


def test_refusals_name_the_labels(
    make_checkpoint: MakeCheckpoint, bert_checkpoint: Path, qwen3_checkpoint: Path, xlmr_embedder_checkpoint: Path
) -> None:
    folder = make_checkpoint(nli)
    listed = "contradiction, entailment, neutral"
    said = refusal(folder, None)
    assert f"3 labels ({listed})" in said
    assert "--label NAME" in said
    assert f"no label 'relevant' (--label); its classifier's are {listed}" in refusal(folder, "relevant")
    assert "1 label, which is the score" in refusal(bert_checkpoint, "LABEL_0")
    assert "the recipe qwen3-reranker scores by no labels" in refusal(qwen3_checkpoint, "yes")
    assert "the recipe bi-encoder scores by no labels" in refusal(xlmr_embedder_checkpoint, "yes")


def test_the_command_line(make_checkpoint: MakeCheckpoint) -> None:
    folder = str(make_checkpoint(nli))
    done = CliRunner().invoke(_rerankd(), ["inspect", folder, "--json", "--device", "cpu", "--label", "entailment"])
    assert json.loads(done.stdout)["head"] == "classifier of 3 labels: the probability of entailment"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["LABEL_0", "LABEL_1"], "its two labels have no names, and the second is taken to mean relevant"),
        (["irrelevant", "relevant"], None),
        (["toxic"], "its label 'toxic' is taken to mean relevance"),
        (["LABEL_0"], None),
        (["Score"], None),
    ],
)
def test_labels_whose_meaning_is_taken_for_granted_are_told(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, names: list[str], said: str | None
) -> None:
    folder = Path(shutil.copytree(make_checkpoint(checkpoints.bert, labels=len(names)), tmp_path / "model"))
    edit(folder, id2label={str(i): name for i, name in enumerate(names)})
    choice = plan(LoadOptions(str(folder), device="cpu")).choice
    why = "it is the one for BertForSequenceClassification"
    assert (choice.why, choice.certain) == (f"{why}; {said}" if said else why, said is None)
    if len(names) == 2:
        named = plan(LoadOptions(str(folder), device="cpu", label=names[0])).choice
        assert (named.why, named.certain) == (why, True)
