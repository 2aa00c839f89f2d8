"""Seeded random checkpoints of the true architectures with the true tokenizers, as folders like the hub's.

Every weight is random at a scale that makes it matter: norms are not ones, biases are not zeros, attention is
not flat, so that a missing bias, a wrong rotary or a lost token moves the scores.

By hand, in the sizes of the published models too: `python -m tests.checkpoints FOLDER qwen3-0.6b xlmr-m3 ...`
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import vocabularies

YES, NO = 9693, 2152
QWEN3_SIZES: Mapping[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    # A feed-forward whose second map no kernel takes, between maps that kernels take.
    "uneven": {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
ENCODER_SIZES: Mapping[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
    "two-heads": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2},
    "uneven": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 2},
    "minilm": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "m3": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "m3-sixth": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 16},
}
QWEN3_VL_SIZES: Mapping[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "tiny": (
        QWEN3_SIZES["tiny"],
        {
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        [8, 4, 4],
    ),
    "8b-vision": (
        QWEN3_SIZES["tiny"],
        {
            "depth": 2,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        [8, 4, 4],
    ),
    "2b-twelfth": (
        QWEN3_SIZES["0.6b"] | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 2},
        {
            "depth": 2,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "deepstack_visual_indexes": [0],
        },
        [24, 20, 20],
    ),
    "2b": (
        QWEN3_SIZES["0.6b"] | {"hidden_size": 2048, "intermediate_size": 6144},
        {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        [24, 20, 20],
    ),
}


@dataclass(frozen=True)
class Storage:
    """How a checkpoint lies on disk.

    shards: weights over three files with an index
    weights: `model.safetensors`, or `pytorch_model.bin` as torch pickles it
    old_keys: the config keys of the hub's checkpoints (`rope_theta`, `rope_scaling`, `torch_dtype`)
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    shards: bool = False
    weights: Literal["safetensors", "bin"] = "safetensors"
    old_keys: bool = False


def randomise(model: torch.nn.Module, gain: float, seed: int = 0) -> None:
    """Fill every parameter: a matrix multiplies its input's deviation by `gain`, norms spread about 1.

    Much more gain makes attention so sharp that bfloat16 alone moves scores by more than 0.01.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner = modules[name.rpartition(".")[0]]
            parameter.normal_(generator=generator)
            if isinstance(owner, torch.nn.Embedding):
                parameter.mul_(0.05)
            elif name.endswith("bias"):
                parameter.mul_(0.1)
            elif parameter.dim() == 1:
                parameter.mul_(0.2).add_(1)
            else:
                parameter.mul_(gain / parameter[0].numel() ** 0.5)


def store(model: Any, folder: Path, storage: Storage) -> None:
    """Write weights and config; the weights' names are those that transformers saves, which are the hub's."""
    model = model.to(getattr(torch, storage.dtype))
    model.config.dtype = getattr(torch, storage.dtype)
    model.save_pretrained(folder, max_shard_size="100GB")
    if storage.shards or storage.weights == "bin":
        rewrite_weights(folder, storage)
    if storage.old_keys:
        path = folder / "config.json"
        path.write_text(json.dumps(with_old_keys(json.loads(path.read_text())), indent=2))


def rewrite_weights(folder: Path, storage: Storage) -> None:
    single = folder / "model.safetensors"
    tensors = load_file(single)
    single.unlink()
    for name in [name for name in tensors if name.endswith("word_embeddings.weight")]:
        # Older encoders were saved with this buffer, which is no weight.
        positions = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
        tensors[name.replace("word_embeddings.weight", "position_ids")] = torch.arange(positions)[None]
    stem, suffix = ("model", "safetensors") if storage.weights == "safetensors" else ("pytorch_model", "bin")

    def save(part: dict[str, torch.Tensor], name: str) -> None:
        if suffix == "bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, metadata={"format": "pt"})

    if not storage.shards:
        save(tensors, f"{stem}.{suffix}")
        return
    files = [f"{stem}-{i + 1:05}-of-00003.{suffix}" for i in range(3)]
    where = {name: files[i * 3 // len(tensors)] for i, name in enumerate(tensors)}
    for file in files:
        save({name: tensor for name, tensor in tensors.items() if where[name] == file}, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=2))


def with_old_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A config with transformers 4's keys in place of transformers 5's, nested ones included."""
    old: dict[str, Any] = {}
    for key, value in config.items():
        if key == "rope_parameters":
            scaling = {k: v for k, v in value.items() if k != "rope_theta"}
            old["rope_theta"] = value["rope_theta"]
            old["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling
        elif key == "dtype":
            old["torch_dtype"] = value
        else:
            old[key] = with_old_keys(value) if isinstance(value, dict) else value
    return old


def widen_rows(weight: torch.Tensor, rows: tuple[int, ...], scale: float) -> None:
    """Make some rows of an embedding large enough that their logits spread over the documents."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for row in rows:
            weight[row] = torch.randn(weight.shape[1], generator=generator).mul_(scale / weight.shape[1] ** 0.5)


def write_qwen_tokenizer(folder: Path) -> None:
    vocabularies.write(
        folder,
        vocabularies.qwen(),
        tokenizer_class="Qwen2Tokenizer",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        bos_token=None,
        unk_token=None,
        add_bos_token=False,
        add_prefix_space=False,
        model_max_length=131072,
    )


def qwen3(
    folder: Path,
    *,
    head: Literal["lm", "one-row", "two-rows"] = "lm",
    tied: bool = True,
    size: str = "tiny",
    storage: Storage = Storage(),
    answers: tuple[int, ...] = (YES, NO),
    spread: float = 0.6,
) -> Path:
    """Qwen3-Reranker as published (`lm`), or converted to a classifier with one row, or with rows no and yes.

    answers: tokens whose logits spread over the documents, by `spread`
    """
    config = transformers.Qwen3Config(
        vocab_size=151669,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        bos_token_id=151643,
        eos_token_id=151645,
        pad_token_id=151643,
        **QWEN3_SIZES[size],
    )
    if head == "lm":
        model = transformers.Qwen3ForCausalLM(config)
        randomise(model, 0.8)
        widen_rows(model.lm_head.weight, answers, spread)
    else:
        config.num_labels = 1 if head == "one-row" else 2
        model = transformers.Qwen3ForSequenceClassification(config)
        randomise(model, 0.8)
        with torch.no_grad():
            model.score.weight.mul_(1.0 / config.num_labels)
    store(model, folder, storage)
    write_qwen_tokenizer(folder)
    return folder


QWEN_CHAT_TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n\\nYou may call functions.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""What chat models have, and the first revision of Qwen3-Reranker too."""
VL_CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if 'image' in part or 'image_url' in part %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'video' in part %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def qwen3_vl(folder: Path, *, size: str = "tiny", tied: bool = True, storage: Storage = Storage()) -> Path:
    """Qwen3-VL-Reranker with its processors' files."""
    text, vision, sections = QWEN3_VL_SIZES[size]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": sections, "mrope_interleaved": True}
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": 151936,
            "max_position_embeddings": 262144,
            "rms_norm_eps": 1e-6,
            "rope_parameters": rope,
            "tie_word_embeddings": tied,
            **text,
        },
        vision_config={
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "out_hidden_size": text["hidden_size"],
            **vision,
        },
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        tie_word_embeddings=tied,
    )
    model = transformers.Qwen3VLForConditionalGeneration(config)
    randomise(model, 0.8)
    widen_rows(model.lm_head.weight, (YES, NO), 0.6)
    store(model, folder, storage)
    write_qwen3_vl_processor(folder)
    return folder


def write_qwen3_vl_processor(folder: Path) -> None:
    """The tokenizer, the chat template and the processors' settings."""
    write_qwen_tokenizer(folder)
    shared = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor",
    }
    image = shared | {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    video = shared | {
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "fps": 2,
        "min_frames": 4,
        "max_frames": 768,
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=2))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2))
    (folder / "chat_template.jinja").write_text(VL_CHAT_TEMPLATE)


def roberta_config(kind: Any, vocabulary: str, size: str, labels: int = 1) -> Any:
    """XLM-R's or RoBERTa's config: m3 has bge-reranker-v2-m3's 8,194 positions, tiny 1,026."""
    large = size in ("m3", "m3-sixth")
    return kind(
        vocab_size=250002 if large else vocabularies.size(vocabulary),
        max_position_embeddings=8194 if large else 1026,
        type_vocab_size=1,
        num_labels=labels,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        layer_norm_eps=1e-5,
        **ENCODER_SIZES[size],
    )


def write_roberta_tokenizer(folder: Path, vocabulary: str, kind: str, positions: int) -> None:
    vocabularies.write(
        folder,
        vocabulary,
        tokenizer_class=kind,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_max_length=positions - 2,
    )


def classifier(model: Any, folder: Path, storage: Storage, seed: int, spread: float, shift: float = 0.0) -> None:
    """Fill a sequence classifier, its last layer `spread` times as strong and `shift` higher, and write it.

    The seeds are ones for which tiny models' scores neither bunch up nor sit at an end.
    """
    randomise(model, 1.2, seed)
    head = getattr(model.classifier, "out_proj", model.classifier)
    with torch.no_grad():
        head.weight.mul_(spread)
        head.bias.add_(shift)
    store(model, folder, storage)


def xlmr(folder: Path, *, labels: int = 1, size: str = "tiny", storage: Storage = Storage()) -> Path:
    """bge-reranker's architecture: XLM-R, with a dense-tanh-out_proj head on `<s>`."""
    vocabulary = vocabularies.xlm_roberta()
    config = roberta_config(transformers.XLMRobertaConfig, vocabulary, size, labels)
    # The deeper model's logits lie far from 0.
    spread, shift = (1.3, 1.2) if size == "m3" else (1.6 if labels == 1 else 1.2, 0.0)
    classifier(transformers.XLMRobertaForSequenceClassification(config), folder, storage, 1, spread, shift)
    write_roberta_tokenizer(folder, vocabulary, "XLMRobertaTokenizer", config.max_position_embeddings)
    return folder


def roberta(folder: Path, *, labels: int = 1, size: str = "tiny", storage: Storage = Storage()) -> Path:
    """RoBERTa cross-encoders: XLM-R's layers over a byte-level BPE vocabulary."""
    vocabulary = vocabularies.roberta()
    config = roberta_config(transformers.RobertaConfig, vocabulary, size, labels)
    classifier(transformers.RobertaForSequenceClassification(config), folder, storage, 2, 2.0)
    write_roberta_tokenizer(folder, vocabulary, "RobertaTokenizer", config.max_position_embeddings)
    return folder


def bert(
    folder: Path,
    *,
    labels: int = 1,
    size: str = "tiny",
    vocab_txt_only: bool = False,
    storage: Storage = Storage(),
) -> Path:
    """ms-marco-MiniLM's architecture; `vocab_txt_only` leaves the tokenizer that old checkpoints have."""
    config = transformers.BertConfig(
        vocab_size=30522, max_position_embeddings=512, num_labels=labels, **ENCODER_SIZES[size]
    )
    classifier(transformers.BertForSequenceClassification(config), folder, storage, 0, 1.5)
    settings = json.loads((vocabularies.minilm_folder() / "tokenizer_config.json").read_text())
    vocabularies.write(folder, vocabularies.bert(), **settings)
    if vocab_txt_only:
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_bytes((vocabularies.minilm_folder() / "vocab.txt").read_bytes())
    return folder


def xlmr_embedder(
    folder: Path,
    *,
    pooling: Literal["cls", "mean"] = "cls",
    prompts: Mapping[str, str] | None = None,
    max_seq_length: int = 512,
    size: str = "tiny",
    storage: Storage = Storage(),
) -> Path:
    """A sentence-transformers folder over XLMRobertaModel: pooling, then Normalize; `prompts` by name."""
    vocabulary = vocabularies.xlm_roberta()
    config = roberta_config(transformers.XLMRobertaConfig, vocabulary, size)
    model = transformers.XLMRobertaModel(config)
    randomise(model, 1.5)
    store(model, folder, storage)
    write_roberta_tokenizer(folder, vocabulary, "XLMRobertaTokenizer", config.max_position_embeddings)
    steps = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(steps)
    ]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "2_Normalize").mkdir(exist_ok=True)
    files: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_seq_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": dict(prompts or {}), "default_prompt_name": None},
        "1_Pooling/config.json": {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    return folder


NAMED: Mapping[str, Callable[[Path], Path]] = {
    "qwen3-tiny": qwen3,
    "qwen3-0.6b": lambda folder: qwen3(folder, size="0.6b", storage=HUB),
    "qwen3-vl-tiny": qwen3_vl,
    "qwen3-vl-2b-twelfth": lambda folder: qwen3_vl(folder, size="2b-twelfth", storage=HUB),
    "qwen3-vl-2b": lambda folder: qwen3_vl(folder, size="2b", storage=HUB),
    "xlmr-tiny": xlmr,
    "xlmr-m3": lambda folder: xlmr(folder, size="m3", storage=Storage(dtype="bfloat16")),
    "xlmr-m3-sixth": lambda folder: xlmr(folder, size="m3-sixth", storage=Storage(dtype="bfloat16")),
    "bert-tiny": bert,
    "bert-minilm": lambda folder: bert(folder, size="minilm"),
}
HUB = Storage(dtype="bfloat16", old_keys=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.checkpoints", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in which each checkpoint gets a folder of its name")
    parser.add_argument("names", nargs="*", default=[*NAMED], metavar="name", help=f"of {', '.join(NAMED)}")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in NAMED]:
        parser.error(f"there is no checkpoint {unknown[0]}; the names are {', '.join(NAMED)}")
    for name in given.names:
        folder = root_folder(given.root / name)
        NAMED[name](folder)
        print(name, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) >> 20, "MiB")


def root_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main(sys.argv[1:])
