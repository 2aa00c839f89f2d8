"""BERT (Devlin et al., 2018), as a cross-encoder and as a bi-encoder.

Behaviour reference: `modeling_bert.py` in transformers.
"""

from __future__ import annotations

from rerankd.core import ModelError
from rerankd.layers.spec import Activation, EmbeddingWeights, LayerSpec, Norm, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.encoders import cross_encoder, pooled
from rerankd.models.recipes import encoders
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.stack import LayerNames, Stack

GELU: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
NAMES = LayerNames(
    layer="encoder.layer.{}",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    up=("intermediate.dense",),
    down="output.dense",
    attention_norm="attention.output.LayerNorm",
    mlp_norm="output.LayerNorm",
)


def spec_of(config: Config) -> TransformerSpec:
    """The encoder that a configuration describes."""
    config.require("position_embedding_type", "absolute", None)
    config.require("is_decoder", False, None)
    activation = config.get("hidden_act", str, "gelu")
    if activation not in GELU:
        raise ModelError(f"{config.source}: `hidden_act` is {shown(activation)}; known are {', '.join(GELU)}.")
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if hidden % heads:
        raise config.wrong("num_attention_heads", f"must divide `hidden_size` ({hidden})")
    norm = Norm("layer", config.epsilon("layer_norm_eps", 1e-12))
    layer = LayerSpec(
        hidden=hidden,
        heads=heads,
        head_dim=hidden // heads,
        mlp=config.size("intermediate_size"),
        norm=norm,
        placement="post",
        activation=GELU[activation],
        causal=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    )
    return TransformerSpec((layer,) * config.layers(), embedding_norm=norm)


def encoder(
    config: Config,
    weights: Weights,
    first_position: int,
    names: LayerNames = NAMES,
    embedding_norm: str = "embeddings.LayerNorm",
) -> Stack:
    """The weights of the encoder. Positions begin at row `first_position` of their table."""
    # Checked before anything is allocated by these sizes, which may be any numbers.
    layers = config.layers()
    weights.expect_count(config, "num_hidden_layers", layers, names.layer.removesuffix(".{}"))
    spec = spec_of(config)
    words, types = config.size("vocab_size"), config.size("type_vocab_size", 2)
    most = config.size("max_position_embeddings")
    embeddings = weights.scope("embeddings")
    embeddings.expect_size(config, "hidden_size", spec.hidden, "word_embeddings.weight", axis=1)
    embeddings.expect_size(config, "vocab_size", words, "word_embeddings.weight")
    embeddings.expect_size(config, "type_vocab_size", types, "token_type_embeddings.weight")
    embeddings.expect_size(config, "max_position_embeddings", most, "position_embeddings.weight")
    mlp = f"{names.layer.format(0)}.{names.up[0]}.weight"
    weights.expect_size(config, "intermediate_size", spec.layers[0].mlp, mlp)
    assert spec.embedding_norm is not None
    tables = EmbeddingWeights(
        words=embeddings.tensor("word_embeddings.weight", words, spec.hidden),
        positions=embeddings.tensor("position_embeddings.weight", most, spec.hidden)[first_position:],
        types=embeddings.tensor("token_type_embeddings.weight", types, spec.hidden),
        norm=weights.norm(embedding_norm, spec.hidden, spec.embedding_norm),
    )
    return Stack(spec, weights, names, tables)


def bert_cross_encoder(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`BertForSequenceClassification`: tanh pooler on `[CLS]`, then the classifier."""
    stack = encoder(config, weights.scope("bert"), 0)
    return cross_encoder(config, weights, executor, stack, recipe, "bert.pooler.dense", "classifier")


def bert_pooled(config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe) -> TextModel:
    """`BertModel` in a sentence-transformers folder."""
    scope = weights.scope_holding("embeddings.word_embeddings.weight", "", "bert")
    return pooled(config, token_id, executor, encoder(config, scope, 0), recipe)


def colbert(config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe) -> TextModel:
    """`HF_ColBERT`: Stanford's ColBERT, whose projection lies beside the encoder."""
    stack = encoder(config, weights.scope("bert"), 0)
    return pooled(config, token_id, executor, stack, recipe)


CROSS_ENCODER = Architecture(("bert",), (encoders.CROSS_ENCODER,), bert_cross_encoder, plain_positions, spec_of)
POOLED = Architecture(("bert",), encoders.POOLED, bert_pooled, plain_positions, spec_of)
COLBERT = Architecture(("bert",), (encoders.LATE_INTERACTION,), colbert, plain_positions, spec_of)
