"""Vision models of `transformers`: classification, segmentation, detection, image and text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.clean.case import Case, Workload, add, own_loss
from benchmarks.clean.language import TOKENS, WORDS, _made

_BATCH = 2
_CLASSES = 5


def _classifier(architecture: str, options: dict[str, Any], size: int, batch: int) -> Workload:
    model = _made(architecture, options, num_labels=_CLASSES)
    channels = getattr(model.config, "num_channels", 3)
    images = torch.randn(batch, channels, size, size)
    labels = torch.randint(0, _CLASSES, (batch,))
    return Workload(model, {"pixel_values": images, "labels": labels}, own_loss)


def _video(architecture: str, options: dict[str, Any], size: int) -> Workload:
    model = _made(architecture, options, num_labels=_CLASSES)
    frames = torch.randn(1, model.config.num_frames, 3, size, size)
    return Workload(model, {"pixel_values": frames, "labels": torch.tensor([1])}, own_loss)


def _masked(architecture: str, options: dict[str, Any], size: int) -> Workload:
    """Masked autoencoder: the loss is the error of the reconstruction."""
    model = _made(architecture, options)
    return Workload(model, {"pixel_values": torch.randn(_BATCH, 3, size, size)}, own_loss)


def _segmentation(architecture: str, options: dict[str, Any], size: int) -> Workload:
    model = _made(architecture, options, num_labels=_CLASSES)
    labels = torch.randint(0, _CLASSES, (_BATCH, size, size))
    labels[0, 0] = 255  # pixels without a class
    images = torch.randn(_BATCH, 3, size, size)
    return Workload(model, {"pixel_values": images, "labels": labels}, own_loss)


def _detection(architecture: str, options: dict[str, Any], size: int) -> Workload:
    """DETR: matching, cross entropy, L1 and generalised IoU of boxes."""
    model = _made(architecture, options, num_labels=_CLASSES)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2]])

    def loss(model: Any, batch: Any) -> Tensor:
        boxes = batch["boxes"]
        labels = [{"class_labels": torch.tensor([1, 3]), "boxes": boxes} for _ in range(_BATCH)]
        result: Tensor = model(pixel_values=batch["pixel_values"], labels=labels).loss
        return result

    images = torch.randn(_BATCH, 3, size, size)
    return Workload(model, {"pixel_values": images, "boxes": boxes}, loss)


def _depth(architecture: str, options: dict[str, Any], size: int) -> Workload:
    """L1 against a depth map; the library leaves this loss to the user."""
    model = _made(architecture, options)
    images = torch.randn(_BATCH, 3, size, size)

    def loss(model: Any, batch: Any) -> Tensor:
        depth = model(batch["pixel_values"]).predicted_depth
        return (depth - batch["depth"]).abs().mean()

    return Workload(model, {"pixel_values": images, "depth": torch.rand(_BATCH, size, size)}, loss)


def _contrastive(architecture: str, options: dict[str, Any], size: int) -> Workload:
    """Image and text embeddings, matched within the batch."""
    model = _made(architecture, options)
    batch = {
        "pixel_values": torch.randn(_BATCH, 3, size, size),
        "input_ids": torch.randint(3, WORDS, (_BATCH, TOKENS)),
        "attention_mask": torch.ones(_BATCH, TOKENS, dtype=torch.long),
    }

    def loss(model: Any, batch: Any) -> Tensor:
        result: Tensor = model(**batch, return_loss=True).loss
        return result

    return Workload(model, batch, loss)


def _perceiver(options: dict[str, Any]) -> Workload:
    model = _made("PerceiverForMaskedLM", options)
    ids = torch.randint(0, WORDS, (_BATCH, TOKENS))
    mask = torch.ones(_BATCH, TOKENS, dtype=torch.long)
    return Workload(model, {"inputs": ids, "attention_mask": mask, "labels": ids.clone()}, own_loss)


_VIT = {
    "image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
_SWIN = {
    "image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
    "window_size": 4,
}  # fmt: skip
_TEXT = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 40, "eos_token_id": 2,
}  # fmt: skip
_BACKBONE = {
    "backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False,
}  # fmt: skip

_CLASSIFIERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "ViT": ("ViTForImageClassification", _VIT, 16),
    "DeiT": ("DeiTForImageClassification", _VIT, 16),
    "BEiT": ("BeitForImageClassification", {**_VIT, "use_relative_position_bias": True}, 16),
    "DINOv2": ("Dinov2ForImageClassification", {**_VIT, "mlp_ratio": 2}, 16),
    "Swin": ("SwinForImageClassification", _SWIN, 32),
    "Swin-v2": ("Swinv2ForImageClassification", _SWIN, 32),
    "ConvNeXt": ("ConvNextForImageClassification", _STAGES, 32),
    "ConvNeXt-v2": ("ConvNextV2ForImageClassification", _STAGES, 32),
    "ResNet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, **_STAGES, "layer_type": "bottleneck"}, 32,
    ),
    "RegNet": ("RegNetForImageClassification", {**_STAGES, "embedding_size": 8, "groups_width": 8},
               32),
    "BiT": ("BitForImageClassification", {**_STAGES, "embedding_size": 8, "num_groups": 4}, 32),
    "MobileNetV1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25}, 32),
    "MobileNetV2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25}, 32),
    "EfficientNet": (
        "EfficientNetForImageClassification",
        {"in_channels": [32, 16], "out_channels": [16, 24], "strides": [1, 2],
         "kernel_sizes": [3, 3], "depthwise_padding": [], "num_block_repeats": [1, 1],
         "expand_ratios": [1, 6],
         "hidden_dim": 1280, "width_coefficient": 1.0, "depth_coefficient": 1.0,
         "image_size": 32},
        32,
    ),
    "PoolFormer": (
        "PoolFormerForImageClassification",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "mlp_ratio": 2.0}, 32,
    ),
    "SegFormer classifier": (
        "SegformerForImageClassification",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads":
         [1, 2, 2, 4], "decoder_hidden_size": 16}, 32,
    ),
    "PVT": (
        "PvtForImageClassification",
        {"image_size": 32, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32],
         "num_attention_heads": [1, 2, 2, 4], "mlp_ratios": [2, 2, 2, 2]}, 32,
    ),
    "CvT": (
        "CvtForImageClassification",
        {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}, 32,
    ),
    "LeViT": (
        "LevitForImageClassification",
        {"image_size": 32, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2],
         "depths": [1, 1, 1], "key_dim": [8, 8, 8]}, 32,
    ),
    "MobileViT": (
        "MobileViTForImageClassification",
        {"image_size": 32, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes":
         [4, 8, 8, 16, 16, 24, 32], "num_attention_heads": 2}, 32,
    ),
}  # fmt: skip

for _name, (_class, _options, _size) in _CLASSIFIERS.items():
    add(Case(_name, lambda c=_class, o=_options, s=_size: _classifier(c, o, s, _BATCH)))
add(Case("ViT-MAE", lambda: _masked("ViTMAEForPreTraining", {
    **_VIT, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}, 16)))  # fmt: skip
add(Case("SegFormer", lambda: _segmentation("SegformerForSemanticSegmentation", {
    "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16}, 32)))  # fmt: skip
add(Case("TimeSformer", lambda: _video("TimesformerForVideoClassification", {
    **_VIT, "num_frames": 2}, 16)))  # fmt: skip
add(Case("VideoMAE", lambda: _video("VideoMAEForVideoClassification", {
    **_VIT, "num_frames": 2, "tubelet_size": 2}, 16)))  # fmt: skip
add(Case("GLPN", lambda: _depth("GLPNForDepthEstimation", {
    "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 8,
    "num_attention_heads": [1, 2, 2, 4]}, 32)))  # fmt: skip
add(Case("CLIP", lambda: _contrastive("CLIPModel", {
    "text_config": {**_TEXT, "bos_token_id": 1}, "vision_config": _VIT,
    "projection_dim": 16}, 16)))  # fmt: skip
add(Case("SigLIP", lambda: _contrastive("SiglipModel", {
    "text_config": _TEXT, "vision_config": _VIT}, 16)))  # fmt: skip
add(Case("Perceiver", lambda: _perceiver({
    "vocab_size": WORDS, "num_latents": 8, "d_latents": 16, "d_model": 32, "num_blocks": 1,
    "num_self_attends_per_block": 2, "num_self_attention_heads": 2, "num_cross_attention_heads": 2,
    "max_position_embeddings": TOKENS})))  # fmt: skip


def _detr_options() -> dict[str, Any]:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, layer_type="basic", out_features=["stage4"], **_STAGES
    )
    return {
        "backbone_config": backbone, "use_timm_backbone": False, "d_model": 32,
        "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 6,
        "auxiliary_loss": True,
    }  # fmt: skip


_DETR = "DetrForObjectDetection"
add(Case("DETR", lambda: _detection(_DETR, _detr_options(), 64), half=False))  # no cdist there

_REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet-50": ("ResNetForImageClassification", {}),
    "ViT base": ("ViTForImageClassification", {}),
    "ConvNeXt tiny": ("ConvNextForImageClassification", {}),
    "MobileNetV2 1.0": ("MobileNetV2ForImageClassification", {}),
    "Swin tiny": ("SwinForImageClassification", {}),
    "EfficientNet-B7": ("EfficientNetForImageClassification", {}),
}
for _name, (_class, _options) in _REAL.items():
    add(Case(_name, lambda c=_class, o=_options: _classifier(c, o, 224, 1), real=True))
