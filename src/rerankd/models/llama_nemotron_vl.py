"""llama-nemotron-rerank-vl: the bidirectional Llama of llama-nemotron-rerank, which sees images too.

Behaviour reference: `modeling_llama_nemotron_vl.py` and `processing_llama_nemotron_vl.py` of nvidia's model, which are
not run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import read_json
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.decoders import decoder, expect_in
from rerankd.models.llama_bidirectional import pooled_score, spec_of
from rerankd.models.pooling import Pooling
from rerankd.models.recipes.nemotron import BEGIN, NEMOTRON_RERANK_VL
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.siglip import SiglipTower
from rerankd.models.siglip_shape import SiglipShape
from rerankd.models.visual_decoder import VisualDecoder
from rerankd.models.visual_encoder import VisualEncoder

POOLINGS: dict[Any, Pooling] = {"last": Pooling(("lasttoken",)), "avg": Pooling(("mean",))}
"""Ways to pool, by their names in config.json; the first is the authors' default."""
PROCESSOR, LIMIT = "processor_config.json", "rerank_max_length"
DEFAULT_TILES = 2
"""The default of nvidia's processor, for a file without the entry."""
MOST_TILES = 64
LANGUAGE_MODELS = ("LlamaBidirectionalModel", "LlamaBidirectionalForSequenceClassification")


def spec(config: Config) -> TransformerSpec:
    """The layers of the language model."""
    return spec_of(config.section("llm_config"))


def nemotron_reranker_vl(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> VisualDecoder:
    """`LlamaNemotronVLForSequenceClassification`."""
    token_id(BEGIN)  # without which it would be read as text
    config.require("pooling", *POOLINGS)
    config.require("prompt_template", "v1", None)
    for name in ("pre_feature_reduction", "keep_aspect_ratio", "use_backbone_lora", "use_llm_lora"):
        config.require(name, False, None)
    text = config.section("llm_config")
    if text.architectures[:1] not in [(name,) for name in LANGUAGE_MODELS]:
        raise text.wrong("architectures", f"must begin with {' or '.join(LANGUAGE_MODELS)}")
    image_id = token_id(recipe.marks.image)
    if config.size("img_context_token_id", 128258, least=0) != image_id:
        raise config.wrong("img_context_token_id", f"must be {image_id}, the tokenizer's {recipe.marks.image}")
    whole = weights.scope_holding("language_model.embed_tokens.weight", "model", "")
    base = whole.scope("language_model")
    expect_in(text, base)
    stack = decoder(text, base, spec(config))
    tower = whole.scope_holding("embeddings.patch_embedding.weight", "vision_model.vision_model", "vision_model")
    hidden = stack.spec.hidden
    return VisualDecoder(
        spec=stack.spec,
        head=pooled_score(config, weights, hidden, recipe, POOLINGS[config.entries.get("pooling", "last")]),
        transformer=executor.transformer(stack.spec, stack),
        visuals=VisualEncoder(SiglipTower(config, tower, whole.scope("mlp1"), hidden, executor)),
        placeholders=(image_id,),
    )


def processed(config: Config, recipe: Recipe) -> Recipe:
    """The recipe with the tiles and the longest prompt that processor_config.json states, as transformers reads it.

    An entry that the file lacks has the default of nvidia's processor. Without the file tiles are as many as the
    model's card asks for. ModelError for a prompt or tiles that are not supported.
    """
    shape, tiles = SiglipShape.of(config), recipe.sizing.tiles
    assert tiles is not None, "the recipe shows tiles"
    tiles, limit = replace(tiles, side=shape.pixels), recipe.max_tokens
    path = Path(config.source).parent / PROCESSOR
    if path.is_file():
        processor = Config(read_json(path), str(path))
        processor.require("force_image_size", shape.pixels)
        processor.require("num_image_token", shape.tokens, None)
        processor.require("prompt_template", "v1", None)
        most = processor.size("max_input_tiles", DEFAULT_TILES)
        if most > MOST_TILES:
            raise processor.wrong("max_input_tiles", f"must be an integer from 1 to {MOST_TILES}")
        # Otherwise an image is one tile.
        most = most if processor.get("dynamic_image_size", bool, True) else 1
        tiles = replace(tiles, most=most, whole=processor.get("use_thumbnail", bool, True))
        limit = None if processor.entries.get(LIMIT) is None else processor.size(LIMIT)
    return replace(recipe, sizing=replace(recipe.sizing, tiles=tiles), max_tokens=limit)


NEMOTRON_VL = Architecture(
    ("llama_nemotron_vl_rerank",),
    (NEMOTRON_RERANK_VL,),
    nemotron_reranker_vl,
    positions=lambda config: plain_positions(config.section("llm_config")),
    spec=spec,
    images=lambda config: SiglipShape.of(config).images(),
    processed=processed,
)
