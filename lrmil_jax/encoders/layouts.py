"""Publishers' parameter names and shapes, and how they become ours.

A layout names, for every parameter of `VisionTransformer`, the tensors of the publisher's file
that it is made of; what is missing, left over or of another shape can so be told in the file's own
words. `{n}` is the number of a block, `name[i/k]` the i-th of k equal parts of a tensor along its
first axis, several names are joined along it, and () is zeros.
"""

import dataclasses
import re
from collections.abc import Mapping

_TIMM_BLOCK = {
    "norm1": "blocks.{n}.norm1",
    "attn/qkv": "blocks.{n}.attn.qkv",
    "attn/proj": "blocks.{n}.attn.proj",
    "scale1": "blocks.{n}.ls1.gamma",
    "norm2": "blocks.{n}.norm2",
    "mlp/fc1": "blocks.{n}.mlp.fc1",
    "mlp/fc2": "blocks.{n}.mlp.fc2",
    "scale2": "blocks.{n}.ls2.gamma",
}
_TIMM_TOP = {
    "patch_embed": "patch_embed.proj",
    "cls_token": "cls_token",
    "positions": "pos_embed",
    "registers": "reg_token",
    "norm": "norm",
}
# Which cubic, and where it samples, when a file's position grid is not the encoder's.
TIMM_RESAMPLING, HF_RESAMPLING, DINOV2_RESAMPLING = "antialiased", "by size", "by scale"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of one publisher's files.

    Attributes:
      top: our module or parameter -> theirs; "positions" is the whole table, class token first.
      block: the same within a block.
      swiglu: what has other names in a block with SwiGLU.
      ignored: beginnings of names that belong to something else: text towers, heads.
      prefixes: what may stand before all names.
      mark: a name that only files of this layout have, if it shares the others.
      resampling: of a position grid of another size, as the publisher's code does it.
      projection_out_first: the last projection is stored [out, in].
    """

    top: Mapping[str, str | tuple[str, ...]]
    block: Mapping[str, str | tuple[str, ...]]
    swiglu: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("", "module.", "backbone.", "module.backbone.", "model.")
    mark: str | None = None
    resampling: str = TIMM_RESAMPLING
    projection_out_first: bool = True

    def sources(self, param: str, *, mlp: str) -> tuple[str, ...]:
        """The tensors that one of our parameters is made of.

        Args:
          param: '/'-joined path of the parameter.
          mlp: of the module.

        Raises:
          KeyError: this layout has nothing of the kind.
        """
        block = re.match(r"block_(\d+)/(.*)", param)
        names = self.top
        if block:
            number, param = block.groups()
            names = {**self.block, **(self.swiglu if mlp == "swiglu" else {})}
        module, _, leaf = param.rpartition("/")
        if param in names:
            tensors = names[param]
        else:
            suffix = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}[leaf]
            tensors = names[module]
            tensors = (tensors,) if isinstance(tensors, str) else tensors
            tensors = tuple(name + suffix for name in tensors)
        tensors = (tensors,) if isinstance(tensors, str) else tensors
        return tuple(name.format(n=number) for name in tensors) if block else tensors


def _prefixed(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {param: prefix + tensor for param, tensor in names.items()}


def _hugging_face(block: Mapping[str, str | tuple[str, ...]], **top: str) -> dict:
    part = "encoder.layer.{n}."
    attention = tuple(f"{part}attention.attention.{name}" for name in ("query", "key", "value"))
    names = {param: part + tensor for param, tensor in block.items()}
    return {
        "top": {
            "patch_embed": "embeddings.patch_embeddings.projection",
            "cls_token": "embeddings.cls_token",
            "positions": "embeddings.position_embeddings",
            "norm": "layernorm",
            **top,
        },
        "block": {"attn/qkv": attention, "attn/proj": part + "attention.output.dense", **names},
        "prefixes": ("", "vit.", "dinov2.", "dinov2_with_registers.", "model.", "encoder."),
        "ignored": ("embeddings.mask_token", "pooler."),
    }


_HF_DINOV2 = {
    "norm1": "norm1",
    "scale1": "layer_scale1.lambda1",
    "norm2": "norm2",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
    "scale2": "layer_scale2.lambda1",
}
_HF_SWIGLU = {
    "mlp/fc1": "encoder.layer.{n}.mlp.weights_in",
    "mlp/fc2": "encoder.layer.{n}.mlp.weights_out",
}
_HF_VIT = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
}
_CLIP_BLOCK = {
    "norm1": "visual.transformer.resblocks.{n}.ln_1",
    "attn/qkv/kernel": "visual.transformer.resblocks.{n}.attn.in_proj_weight",
    "attn/qkv/bias": "visual.transformer.resblocks.{n}.attn.in_proj_bias",
    "attn/proj": "visual.transformer.resblocks.{n}.attn.out_proj",
    "norm2": "visual.transformer.resblocks.{n}.ln_2",
    "mlp/fc1": "visual.transformer.resblocks.{n}.mlp.c_fc",
    "mlp/fc2": "visual.transformer.resblocks.{n}.mlp.c_proj",
}
_HF_CLIP = "vision_model.encoder.layers.{n}."
_POOL = "attn_pool_contrast."
_POOL_NORMS = {
    "pool/query": _POOL + "query",
    "pool/norm_query": _POOL + "ln_q",
    "pool/norm_tokens": _POOL + "ln_k",
    "pool/norm": "ln_contrast",
}

LAYOUTS: Mapping[str, Layout] = {
    "timm": Layout(top=_TIMM_TOP, block=_TIMM_BLOCK, ignored=("head.", "mask_token")),
    "dinov2": Layout(
        top={**_TIMM_TOP, "registers": "register_tokens"},
        block=_TIMM_BLOCK,
        swiglu={"mlp/fc1": "blocks.{n}.mlp.w12", "mlp/fc2": "blocks.{n}.mlp.w3"},
        ignored=("mask_token",),
        mark="mask_token",
        resampling=DINOV2_RESAMPLING,
    ),
    "hf_vit": Layout(**_hugging_face(_HF_VIT)),
    "hf_dinov2": Layout(
        **_hugging_face(_HF_DINOV2), swiglu=_HF_SWIGLU, resampling=HF_RESAMPLING
    ),
    "hf_dinov2_registers": Layout(
        **_hugging_face(_HF_DINOV2, registers="embeddings.register_tokens"), swiglu=_HF_SWIGLU
    ),
    "open_clip": Layout(
        top={
            "patch_embed/kernel": "visual.conv1.weight",
            "cls_token": "visual.class_embedding",
            "positions": "visual.positional_embedding",
            "norm_pre": "visual.ln_pre",
            "norm": "visual.ln_post",
            "projection/kernel": "visual.proj",
        },
        block=_CLIP_BLOCK,
        ignored=("positional_embedding", "text_projection", "logit_scale", "token_embedding.",
                 "ln_final.", "transformer.", "attn_mask", "input_resolution", "context_length",
                 "vocab_size", "logit_bias", "text."),
        projection_out_first=False,
    ),
    "hf_clip": Layout(
        top={
            "patch_embed/kernel": "vision_model.embeddings.patch_embedding.weight",
            "cls_token": "vision_model.embeddings.class_embedding",
            "positions": "vision_model.embeddings.position_embedding.weight",
            "norm_pre": "vision_model.pre_layrnorm",  # sic
            "norm": "vision_model.post_layernorm",
            "projection": "visual_projection",
        },
        block={
            "norm1": _HF_CLIP + "layer_norm1",
            "attn/qkv": tuple(f"{_HF_CLIP}self_attn.{name}_proj" for name in "qkv"),
            "attn/proj": _HF_CLIP + "self_attn.out_proj",
            "norm2": _HF_CLIP + "layer_norm2",
            "mlp/fc1": _HF_CLIP + "mlp.fc1",
            "mlp/fc2": _HF_CLIP + "mlp.fc2",
        },
        ignored=("logit_scale", "text_model.", "text_projection.",
                 "vision_model.embeddings.position_ids"),
    ),
    "conch": Layout(
        top=_prefixed("visual.", {
            **_prefixed("trunk.", _TIMM_TOP),
            **_POOL_NORMS,
            "pool/q/kernel": _POOL + "attn.q_proj_weight",
            "pool/k/kernel": _POOL + "attn.k_proj_weight",
            "pool/v/kernel": _POOL + "attn.v_proj_weight",
            "pool/q/bias": _POOL + "attn.in_proj_bias[0/3]",
            "pool/k/bias": _POOL + "attn.in_proj_bias[1/3]",
            "pool/v/bias": _POOL + "attn.in_proj_bias[2/3]",
            "pool/proj": _POOL + "attn.out_proj",
        }),
        block=_prefixed("visual.trunk.", _TIMM_BLOCK),
        ignored=("visual.proj_contrast", "visual.attn_pool_caption.", "visual.ln_caption.",
                 "text.", "text_decoder.", "logit_scale"),
    ),
    "conch_v1_5": Layout(
        top={
            **_prefixed("trunk.", _TIMM_TOP),
            **_POOL_NORMS,
            "pool/q/kernel": _POOL + "to_q.weight",
            "pool/k/kernel": _POOL + "to_kv.weight[0/2]",
            "pool/v/kernel": _POOL + "to_kv.weight[1/2]",
            "pool/proj/kernel": _POOL + "to_out.weight",
            **{f"pool/{name}/bias": () for name in ("q", "k", "v", "proj")},
        },
        block=_prefixed("trunk.", _TIMM_BLOCK),
        resampling=DINOV2_RESAMPLING,
    ),
}  # fmt: skip
# OpenAI's own files have the names that open_clip took over.
ALIASES = {"openai_clip": "open_clip"}
