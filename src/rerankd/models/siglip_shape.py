"""The sizes of a SigLIP vision tower (Tschannen et al., 2025), from a config.json."""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.layers.spec import LayerSpec, Norm, TransformerSpec
from rerankd.media.visual import VisionFormat
from rerankd.models.checkpoint.config import Config

CHANNELS = 3


@dataclass(frozen=True, slots=True)
class SiglipShape:
    """The sizes of a SigLIP tower.

    side: patches along the side of a tile; merge: patches along the side of a token
    """

    spec: TransformerSpec
    patch: int
    side: int
    merge: int

    @classmethod
    def of(cls, config: Config) -> SiglipShape:
        """From the entries of the whole model. ModelError for a tower of another kind, or of tiles of another size."""
        vision = config.section("vision_config")
        vision.require("model_type", "siglip_vision_model")
        vision.require("hidden_act", "gelu_pytorch_tanh")
        vision.require("num_channels", CHANNELS)
        config.require("select_layer", -1)
        size, patch, ratio = (
            vision.size("image_size", 224),
            vision.size("patch_size", 16),
            config.get("downsample_ratio", float, 0.5),
        )
        merge = round(1 / ratio) if 0 < ratio <= 1 else 0
        if merge * ratio != 1:
            raise config.wrong("downsample_ratio", "must be one divided by a whole number")
        if size % patch or size // patch % merge:
            raise vision.wrong("image_size", f"must be a multiple of {merge} patches of {patch}")
        config.require("force_image_size", size, None)
        hidden, heads = vision.size("hidden_size", 768), vision.size("num_attention_heads", 12)
        if hidden % heads:
            raise vision.wrong("num_attention_heads", f"must divide `hidden_size` ({hidden})")
        norm = Norm("layer", vision.epsilon("layer_norm_eps", 1e-6))
        layer = LayerSpec(
            hidden=hidden, heads=heads, head_dim=hidden // heads, mlp=vision.size("intermediate_size", 3072), norm=norm,
            placement="pre", activation="gelu_tanh", causal=False, qkv_bias=True, out_bias=True, mlp_bias=True,
        )  # fmt: skip
        return cls(TransformerSpec((layer,) * vision.layers(), final_norm=norm), patch, size // patch, merge)

    @property
    def pixels(self) -> int:
        """Pixels along the side of a tile."""
        return self.side * self.patch

    @property
    def tokens(self) -> int:
        """Tokens of a tile."""
        return (self.side // self.merge) ** 2

    def images(self) -> VisionFormat:
        """See `Architecture.images`: the authors round the pixels to bfloat16, whatever the model computes in."""
        return VisionFormat(self.patch, 1, self.merge, bfloat16=True)
