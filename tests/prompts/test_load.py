"""What is read from a checkpoint's folder, what is said of one that cannot be, and how long its prompts may be."""

from __future__ import annotations

import base64
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from rerankd.core import ModelError, Side
from rerankd.models.recipes.encoders import BI_ENCODER, CROSS_ENCODER
from rerankd.models.recipes.qwen3 import QWEN3_RERANKER
from rerankd.models.recipes.recipe import Recipe
from rerankd.prompts import LoadedPrompts, load_prompts
from rerankd.prompts.tokenizer import LoadedTokenizer, load_tokenizer
from tests import checkpoints, texts, vocabularies
from tests.conftest import MakeCheckpoint
from tests.prompts import authors
from tests.prompts.conftest import request, whole


def bert_folder(folder: Path, tokenizer_json: bool = False, **settings: Any) -> Path:
    """A BERT folder with nothing but a tokenizer: of a vocab.txt, unless told otherwise."""
    source = vocabularies.minilm_folder()
    shutil.copy(source / ("tokenizer.json" if tokenizer_json else "vocab.txt"), folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **settings}))
    return folder


class TestFiles:
    @pytest.mark.parametrize("tokenizer_json", [False, True])
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"do_lower_case": True},
            {"do_lower_case": False},
            {"do_lower_case": True, "strip_accents": False},
            {"tokenize_chinese_chars": False},
        ],
    )
    def test_bert_is_read_as_transformers_reads_it(
        self, settings: dict[str, Any], tokenizer_json: bool, tmp_path: Path
    ) -> None:
        folder = bert_folder(tmp_path, tokenizer_json, **settings)
        reference = transformers.AutoTokenizer.from_pretrained(folder)
        group = load_prompts(folder, recipe=CROSS_ENCODER, positions=512).build(
            request("What is Café 東京?", list(texts.DOCUMENTS))
        )
        encoded = reference([["What is Café 東京?", document] for document in texts.DOCUMENTS], truncation=True)
        assert [suffix.token_ids for suffix in group.suffixes] == encoded["input_ids"]
        assert [suffix.token_types for suffix in group.suffixes] == encoded["token_type_ids"]

    def test_the_files_own_truncation_and_padding_are_off(self, minilm_path: Path) -> None:
        assert '"max_length":128' in (minilm_path / "tokenizer.json").read_text()[:200]
        group = load_prompts(minilm_path, recipe=CROSS_ENCODER, positions=512).build(
            request("q", [texts.words(300, 1), "d"])
        )
        assert len(group.suffixes[0]) > 300
        assert len(group.suffixes[1]) == 5

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ({}, "neither tokenizer.json nor vocab.txt"),
            ({"sentencepiece.bpe.model": "x"}, "save_pretrained"),
            ({"tokenizer.json": "{"}, "tokenizer.json cannot be read"),
            ({"tokenizer.json": "{}"}, "tokenizer.json cannot be read"),
            ({"vocab.txt": "[CLS]\n[SEP]\n"}, "lacks [UNK]"),
            ({"vocab.txt": "[CLS]\n", "tokenizer_config.json": "["}, "tokenizer_config.json cannot be read"),
            ({"vocab.txt": "[CLS]\n", "tokenizer_config.json": "[]"}, "tokenizer_config.json cannot be read"),
        ],
    )
    def test_what_is_missing_or_broken_is_named(self, files: dict[str, str], said: str, tmp_path: Path) -> None:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        with pytest.raises(ModelError) as caught:
            load_prompts(tmp_path, recipe=CROSS_ENCODER, positions=512)
        assert said in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    def test_a_sentence_transformers_folder_with_the_model_inside(
        self, make_checkpoint: MakeCheckpoint, tmp_path: Path
    ) -> None:
        flat = make_checkpoint(checkpoints.xlmr_embedder, prompts={"query": "query: "}, max_seq_length=50)
        inner = tmp_path / "0_Transformer"
        inner.mkdir()
        for file in flat.iterdir():
            if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
                shutil.copy(file, inner)
        (inner / "sentence_bert_config.json").rename(inner / "sentence_xlm-roberta_config.json")
        shutil.copy(flat / "config_sentence_transformers.json", tmp_path)
        modules = json.loads((flat / "modules.json").read_text())
        modules[0]["path"] = "0_Transformer"
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        deep, plain = (load_prompts(f, recipe=BI_ENCODER, positions=1024) for f in (tmp_path, flat))
        asked = request("q", [texts.words(100, 1), "d"])
        assert deep.build(asked) == plain.build(asked)
        assert deep.max_tokens == 50

    @pytest.mark.parametrize("content", ["{", "{}", '[{"path": 1}, 2]', "[]"])
    def test_a_broken_modules_json_is_named(self, content: str, tmp_path: Path) -> None:
        bert_folder(tmp_path)
        (tmp_path / "modules.json").write_text(content)
        with pytest.raises(ModelError, match=r"modules\.json"):
            load_prompts(tmp_path, recipe=BI_ENCODER, positions=512)


class TestOptions:
    def test_token_ids(self, qwen_folder: Path) -> None:
        loaded = load_prompts(qwen_folder, recipe=QWEN3_RERANKER, positions=40960)
        assert (loaded.token_id("yes"), loaded.token_id("no")) == (9693, 2152)
        with pytest.raises(ModelError, match="has no token"):
            loaded.token_id("certainly not one token")

    @pytest.mark.parametrize(
        ("declared", "positions", "asked", "expected"),
        [
            (512, 514, None, 512),
            (1000000000000000019884624838656, 512, None, 512),
            (None, 512, None, 512),
            (8192, 512, None, 512),
            (256, 512, 128, 128),
            (256, 512, 512, 512),
        ],
    )
    def test_the_longest_prompt(
        self, declared: int | None, positions: int, asked: int | None, expected: int, tmp_path: Path
    ) -> None:
        folder = bert_folder(tmp_path, **({} if declared is None else {"model_max_length": declared}))
        loaded = load_prompts(folder, recipe=CROSS_ENCODER, positions=positions, max_model_len=asked)
        assert loaded.max_tokens == expected
        assert len(loaded.build(request("q", ["word " * 1000])).suffixes[0]) == expected

    def test_without_a_limit_the_authors_own_holds(
        self, qwen3: LoadedPrompts, qwen3_vl: LoadedPrompts, qwen_folder: Path, qwen_reference: Any
    ) -> None:
        document = "word " * 12_000
        assert (qwen3.max_tokens, qwen3_vl.max_tokens) == (8192, 10_245)
        group = qwen3.build(request("q", [document]))
        assert whole(group) == [authors.qwen3_ids(qwen_reference, "q", document)]
        assert (len(whole(group)[0]), group.truncated) == (8192, (True,))
        assert whole(qwen3_vl.build(request("q", [document]))) == [
            authors.qwen3_vl_ids(qwen_reference, ["q"], [document])
        ]
        longer = load_prompts(qwen_folder, recipe=QWEN3_RERANKER, positions=40960, max_model_len=40960)
        assert longer.build(request("q", [document])).truncated == (False,)

    @pytest.mark.parametrize("asked", [0, -1, 513])
    def test_a_length_that_the_model_cannot_have(self, asked: int, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=f"{asked} tokens.* 512"):
            load_prompts(bert_folder(tmp_path), recipe=CROSS_ENCODER, positions=512, max_model_len=asked)

    @pytest.mark.parametrize("recipe", [CROSS_ENCODER, BI_ENCODER])
    @pytest.mark.parametrize("option", ["chat_template", "default_instruction"])
    def test_encoders_take_no_template_and_no_instruction(self, recipe: Recipe, option: str, minilm_path: Path) -> None:
        with pytest.raises(ModelError, match=option.replace("_", " ")):
            load_prompts(minilm_path, recipe=recipe, positions=512, **{option: "x"})  # type: ignore[arg-type]

    def test_a_decoder_needs_a_template(self, qwen_folder: Path) -> None:
        with pytest.raises(ModelError, match="chat template"):
            load_prompts(qwen_folder, recipe=replace(QWEN3_RERANKER, template=None), positions=512)

    def test_a_default_instruction(self, qwen_folder: Path) -> None:
        plain = load_prompts(qwen_folder, recipe=QWEN3_RERANKER, positions=512)
        served = load_prompts(qwen_folder, recipe=QWEN3_RERANKER, positions=512, default_instruction="served")
        assert served.build(request("q", ["d"])) == plain.build(request("q", ["d"], "served"))
        assert served.build(request("q", ["d"], "own")) == plain.build(request("q", ["d"], "own"))


@pytest.fixture(scope="module")
def tokenizers(qwen_folder: Path, xlmr_folder: Path, roberta_folder: Path, minilm_path: Path) -> list[LoadedTokenizer]:
    """Those of the families, and two with what else is published: NFKC, and a pattern that looks farther ahead."""
    loaded = [load_tokenizer(folder) for folder in (qwen_folder, xlmr_folder, roberta_folder, minilm_path)]
    # Copies: tests share the tokenizers of equal files.
    normalising, looking = (replace(one, tokenizer=Tokenizer.from_str(one.tokenizer.to_str())) for one in loaded[1::-1])
    normalising.tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    pattern = Regex(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    looking.tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return [*loaded, normalising, looking]


SIDES: tuple[Side, ...] = ("left", "right")


LOOKED_AHEAD_AT = (
    *("word", "k", "AB", "B", " ", "\n", " ", "\n", "  ", "\r\n", " \n   ", "é", "\u0301", "\u0327", "中文", "😀", "'"),
    *("'r", "'s", "...", ",", "/", "12", "7", "\u200b", "\u3000", "½", "ﬁ", "\t"),
)
"""What normalisers and pre-tokenisers read together with its neighbours."""


class TestLongTexts:
    """A text far over its limit is not read to its end; that must not change a token that is kept."""

    @settings(max_examples=400)
    @given(
        text=st.lists(
            st.sampled_from(LOOKED_AHEAD_AT),
            min_size=40,
            max_size=250,
        ).map("".join),
        tokens=st.integers(1, 8),
    )
    def test_what_is_read_has_the_same_tokens(self, text: str, tokens: int, tokenizers: list[LoadedTokenizer]) -> None:
        for tokenizer in tokenizers:
            whole = tokenizer.ids([text])[0]
            start, end = tokenizer.reach(text, tokens, "right"), tokenizer.reach(text, tokens, "left")
            assert text.startswith(start)
            assert text.endswith(end)
            first, last = tokenizer.ids([start, end])
            assert whole[: tokens + 1] == first[: tokens + 1]
            assert whole[len(whole) - len(last) :] == last
            assert start == text or len(first) > tokens
            assert end == text or len(last) > tokens
            # Where its characters are cut, too.
            assert tokenizer.cut(start, tokens, "right") == tokenizer.cut(text, tokens, "right")
            assert tokenizer.cut(end, tokens, "left") == tokenizer.cut(text, tokens, "left")

    def test_it_is_short(self, tokenizers: list[LoadedTokenizer]) -> None:
        text = texts.words(5000, 1)
        for tokenizer in tokenizers:
            assert max(len(tokenizer.reach(text, 100, side)) for side in SIDES) < 2000

    def test_so_is_its_start_without_white_space(self, tokenizers: list[LoadedTokenizer]) -> None:
        generator = Random(1)
        numbers = ",".join(str(generator.randrange(1000)) for _ in range(20_000))
        letters = base64.b64encode(generator.randbytes(60_000)).decode()
        qwen, xlmr, roberta, bert, *_ = tokenizers
        cases = {numbers: (qwen, roberta, bert), letters: (qwen, roberta, bert)}
        cases |= {"法国的首都是巴黎。" * 6000: (qwen, roberta, bert), "!?.,;:-" * 9000: (bert,), "法" * 60_000: (bert,)}
        for text, served in cases.items():
            for tokenizer in served:
                start = tokenizer.reach(text, 100, "right")
                assert len(start) <= 3200
                assert tokenizer.ids([start])[0][:101] == tokenizer.ids([text])[0][:101]
        assert xlmr.reach(numbers, 100, "right") == numbers  # one word to it

    def test_it_is_whole_where_words_do_not_part(self, tokenizers: list[LoadedTokenizer]) -> None:
        tokenizer = Tokenizer.from_str(vocabularies.xlm_roberta())
        tokenizer.pre_tokenizer = None
        text = texts.words(5000, 1)
        for side in SIDES:
            assert LoadedTokenizer(tokenizer, None, {}).reach(text, 100, side) == text
            assert tokenizers[0].reach("x" * 50000, 100, side) == "x" * 50000
            assert tokenizers[0].reach(text, None, side) == text


def test_special_tokens_that_normalising_makes(xlmr_folder: Path, tmp_path: Path) -> None:
    """XLM-R's normaliser writes wide letters as ASCII, and its vocabulary spells `</s>`."""
    folder = Path(shutil.copytree(xlmr_folder, tmp_path / "nfkc"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.save(str(folder / "tokenizer.json"))
    assert 2 in tokenizer.encode("a ＜/s＞ b", add_special_tokens=False).ids
    loaded = load_prompts(folder, recipe=CROSS_ENCODER, positions=512)
    ids = loaded.build(request("＜s＞", ["a ＜/s＞ b"])).suffixes[0].token_ids
    assert ids.count(2) == 3
    assert ids.count(0) == 1
    assert "/" in tokenizer.decode(ids)


def test_threads_do_not_mix_requests(qwen_folder: Path, minilm_path: Path) -> None:
    builders = [
        load_prompts(qwen_folder, recipe=QWEN3_RERANKER, positions=40960),
        load_prompts(minilm_path, recipe=CROSS_ENCODER, positions=512),
    ]
    asked = [
        request(texts.words(5, seed), [texts.words(30 + seed, seed + i) for i in range(8)], max_tokens=80 + seed)
        for seed in range(40)
    ]
    for builder in builders:
        alone = [builder.build(one) for one in asked]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(builder.build, asked)) == alone
        assert len({str(whole(group)) for group in alone}) == len(asked)
