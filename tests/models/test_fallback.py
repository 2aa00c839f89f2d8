"""Models that only transformers implements score as sentence-transformers has them, in padded batches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from typer.testing import CliRunner

from rerankd import Reranker
from rerankd.cli.main import _rerankd
from rerankd.core import ModelError
from rerankd.models import fallback
from tests import checkpoints, vocabularies
from tests.conftest import MakeCheckpoint
from tests.models.test_modules import PAIRS as ALL
from tests.models.test_modules import language_model, saved

PAIRS = ALL[::4]
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


def mobilebert(folder: Path, *, labels: int = 1) -> Path:
    """An encoder each of whose tokens reads its neighbours' embeddings, so that padding would change a score."""
    config = transformers.MobileBertConfig(
        vocab_size=30522, num_labels=labels, embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32, **SIZES
    )
    return written(transformers.MobileBertForSequenceClassification(config), folder)


def funnel(folder: Path, *, labels: int = 1) -> Path:
    """An encoder that pools states between its layers, those of padding too."""
    config = transformers.FunnelConfig(
        vocab_size=30522, num_labels=labels, d_model=64, n_head=4, d_head=16, d_inner=128, block_sizes=[1, 1]
    )
    return written(transformers.FunnelForSequenceClassification(config), folder, model_max_length=512)


def written(model: Any, folder: Path, **settings: Any) -> Path:
    checkpoints.randomise(model, 1.2, 1)
    checkpoints.store(model, folder, checkpoints.Storage())
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    vocabularies.write(folder, vocabularies.bert(), tokenizer_class="BertTokenizer", **special, **settings)
    return folder


def their_scores(folder: Path, **options: Any) -> list[float]:
    model = CrossEncoder(str(folder), device="cpu", **options)
    found = torch.cat([model.predict([pair], convert_to_tensor=True) for pair in PAIRS])
    return (found if found.dim() == 1 else found.softmax(1)[:, 1]).tolist()


def own_scores(folder: Path, **options: Any) -> list[float]:
    with Reranker(folder, device="cpu", dtype="float32", **options) as reranker:
        return reranker.score(PAIRS)


@pytest.mark.parametrize(("maker", "labels"), [(mobilebert, 1), (mobilebert, 2), (funnel, 1)])
def test_classifiers(
    make_checkpoint: MakeCheckpoint, caplog: pytest.LogCaptureFixture, maker: Any, labels: int
) -> None:
    folder = make_checkpoint(maker, labels=labels)
    caplog.set_level("INFO", logger="rerankd")
    expected = their_scores(folder, activation_fn=torch.nn.Identity() if labels == 2 else torch.nn.Sigmoid())
    assert max(expected) - min(expected) > 0.05
    assert own_scores(folder) == pytest.approx(expected, abs=1e-5)
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    said = f"{name} is run by transformers, in padded batches, since rerankd has no implementation of it."
    messages = [record.getMessage() for record in caplog.records]
    assert said in messages
    assert "Prompts of different lengths run apart, since padding would change their scores." in messages


def test_a_label_of_three(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(mobilebert, labels=3)
    model = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    expected = torch.cat([model.predict([pair], convert_to_tensor=True) for pair in PAIRS]).softmax(1)[:, 2].tolist()
    assert own_scores(folder, label="LABEL_2") == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ModelError, match="a classifier of 3 labels"):
        own_scores(folder)


def test_a_language_model_with_a_logit_score(tmp_path: Path) -> None:
    vocabulary = vocabularies.roberta()
    config = transformers.GraniteConfig(
        vocab_size=vocabularies.size(vocabulary),
        num_key_value_heads=2,
        logits_scaling=2.0,
        pad_token_id=1,
        **SIZES,
    )
    source, tokens = tmp_path / "granite", (300, 301)
    model = transformers.GraniteForCausalLM(config)
    checkpoints.randomise(model, 0.8)
    checkpoints.widen_rows(model.lm_head.weight, tokens, 1.5)
    checkpoints.store(model, source, checkpoints.Storage())
    vocabularies.write(source, vocabulary, tokenizer_class="PreTrainedTokenizerFast", pad_token="<pad>")
    theirs = language_model(source, tmp_path, tokens=tokens)
    folder = saved(theirs, tmp_path / "model")
    expected = [float(theirs.predict([pair])[0]) for pair in PAIRS]
    assert max(expected) - min(expected) > 0.05
    assert own_scores(folder) == pytest.approx(expected, abs=1e-5)
    (folder / "modules.json").unlink()
    with pytest.raises(ModelError, match=r"names 'GraniteForCausalLM' .* a chat model cannot rerank\. docs/models\.md"):
        own_scores(folder)


def test_what_is_ours_is_run_by_transformers_where_the_user_says_so(bert_checkpoint: Path) -> None:
    assert own_scores(bert_checkpoint, model_impl="transformers") == pytest.approx(
        own_scores(bert_checkpoint), abs=1e-5
    )
    with pytest.raises(ModelError, match="--quantization int8 is for rerankd's own implementations"):
        own_scores(bert_checkpoint, model_impl="transformers", quantization="int8")
    with pytest.raises(ModelError, match="'vllm' is unknown; choose auto, native, transformers"):
        own_scores(bert_checkpoint, model_impl="vllm")


def test_without_the_package_the_extra_is_named(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(mobilebert)
    with pytest.raises(ModelError, match=r"names 'MobileBertForSeq.* runs it without --model-impl native; .*\[tr"):
        own_scores(folder, model_impl="native")
    monkeypatch.setattr(fallback, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'rerankd\[transformers\]'\.$"):
        own_scores(folder)


def test_a_tensor_that_is_missing_is_not_made_up(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(mobilebert), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors: `classifier\.weight` is the first"):
        own_scores(folder)


CODE = """
from pathlib import Path
import transformers
Path({mark!r}).touch()
class OwnConfig(transformers.BertConfig):
    model_type = "own"
class OwnForSequenceClassification(transformers.BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_code_of_a_folder_runs_only_where_it_is_trusted(
    bert_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(bert_checkpoint, tmp_path / "model"))
    mark = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnForSequenceClassification"}
    config |= {"architectures": ["OwnForSequenceClassification"], "model_type": "own", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"code of the folder's own \(own\.py\); --trust-remote-code runs it"):
        own_scores(folder)
    assert not mark.exists()
    assert own_scores(folder, trust_remote_code=True) == pytest.approx(own_scores(bert_checkpoint), abs=1e-5)
    assert mark.exists()
    said = f"Code of {folder} runs, as --trust-remote-code allows: own.py (auto_map in config.json)."
    assert said in [record.getMessage() for record in caplog.records]


def test_trust_has_no_effect_on_what_is_ours(bert_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="rerankd"):
        own_scores(bert_checkpoint, trust_remote_code=True)
    assert "--trust-remote-code has no effect: rerankd's own implementation" in caplog.text


def test_inspect_says_what_runs_the_model(make_checkpoint: MakeCheckpoint) -> None:
    arguments = [str(make_checkpoint(mobilebert)), "--json", "--device", "cpu", "--model-impl", "transformers"]
    found = json.loads(CliRunner().invoke(_rerankd(), ["inspect", *arguments]).stdout)
    assert (found["backend"], found["recipe"]) == ("transformers", "cross-encoder")
    assert found["prompts"] == ["[CLS] what is panda? [SEP] the giant panda is a bear. [SEP]"]
