"""The configuration of a single-file model: what its weights' shapes say, and what the original code has fixed.

diffusers fetches from a hub the configuration of the model that a file resembles. Here the sizes are read off the file,
so that nothing is fetched; and what no shape tells (the noise schedule, the scale of latents, the width of a head) is
that of Stable Diffusion 1.5, 2.1 and XL 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from spare_core.errors import ModelError, SettingsError
from spare_core.models.checkpoint.layout import CLIP, OPEN_CLIP, UNET, VAE, XL_CLIP, XL_OPEN_CLIP, Layout
from spare_core.store.fetching import read_yaml_mapping

Config = dict[str, Any]
_HEAD: Final = 64
"""Width of a head of attention, but in SD 1.x, which has eight of any width."""
_SIDE: Final = {"sd1": 64, "sd2": 96, "sdxl": 128}
"""Side of the latents; of a model of SD 2.x that predicts noise 64."""
_SCALE: Final = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}
TEXT_MODELS: Final = {
    "sd1": {"text_encoder": CLIP},
    "sd2": {"text_encoder": OPEN_CLIP},
    "sdxl": {"text_encoder": XL_CLIP, "text_encoder_2": XL_OPEN_CLIP},
}
"""The text encoders of each kind, and where they are kept."""
_SCHEDULERS: Final = {"sd1": "PNDMScheduler", "sd2": "DDIMScheduler", "sdxl": "EulerDiscreteScheduler"}
_WHAT_V: Final = ("v", "v_prediction", "v-prediction", "v_pred")


def pipeline_index(layout: Layout) -> Config:
    """What model_index.json says."""
    xl = layout.kind == "sdxl"
    index: Config = {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", _SCHEDULERS[layout.kind]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if xl:
        return index | {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "image_encoder": [None, None],
            "feature_extractor": [None, None],
            "force_zeros_for_empty_prompt": True,
        }
    return index | {
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }


def component_configs(layout: Layout) -> dict[str, Config]:
    """The configurations of the networks and of the noise schedule, by component.

    Raises:
        ModelError: if the file does not say what it predicts, or its layout is not one that is known.
    """
    original = _original(layout)
    prediction = _prediction(layout, original)
    found = {
        "unet": _unet(layout, original, prediction),
        "vae": _vae(layout),
        "scheduler": _scheduler(layout, prediction),
    }
    for name, prefix in TEXT_MODELS[layout.kind].items():
        found[name] = _open_clip(layout, prefix, name) if prefix in (OPEN_CLIP, XL_OPEN_CLIP) else _clip(layout, prefix)
    return found


def _original(layout: Layout) -> Mapping[str, Any]:
    """The ``params`` of the original code's configuration, a YAML file of the checkpoint's name beside it, as A1111
    takes it; empty if there is none."""
    file = layout.file.with_suffix(".yaml")
    if not file.is_file():
        return {}
    try:
        params = read_yaml_mapping(file)["model"]["params"]
        return {**params, "unet": params.get("unet_config", {}).get("params", {})}
    except (SettingsError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}, beside the model, is no configuration of the original code ({error})") from None


def _prediction(layout: Layout, original: Mapping[str, Any]) -> str:
    """What the denoiser predicts. No weight tells; who saves a file may say so in it, by the keys that trainers of
    SDXL use, or beside it.

    Raises:
        ModelError: for SD 2.x, of which both kinds are common, if nothing says so.
    """
    said = [
        layout.metadata.get("modelspec.prediction_type"),
        original.get("parameterization"),
        "v" if "v_pred" in layout.shapes else None,
    ]
    known = [str(one).strip().lower() for one in said if one]
    if any(one in _WHAT_V for one in known):
        return "v_prediction"
    if not known and layout.kind == "sd2":
        raise ModelError(
            f"{layout.file} is an SD 2.x, and does not say whether it predicts noise or velocity; lay its "
            f"configuration beside it, as {layout.file.with_suffix('.yaml').name}: 'model: {{params: "
            "{parameterization: v}}' for the models of 768 pixels, eps for those of 512"
        )
    return "epsilon"


def _unet(layout: Layout, original: Mapping[str, Any], prediction: str) -> Config:
    levels = _levels(layout)
    widths = [width for width, _, _ in levels]
    deepest = f"{UNET}middle_block.1.transformer_blocks."
    depths = [*(depth for _, depth, _ in levels), layout.count(deepest)]
    first = next((i for i, depth in enumerate(depths) if depth), None)
    if first is None or len({count for _, _, count in levels}) != 1:
        raise ModelError(f"{layout.file} has a denoiser of another layout than Stable Diffusion's; give a directory")
    mid = f"{UNET}middle_block.1"
    config: Config = {
        "sample_size": _side(layout, prediction),
        "in_channels": layout.shape(f"{UNET}input_blocks.0.0.weight")[1],
        "out_channels": layout.shape(f"{UNET}out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": levels[0][2],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for _, depth, _ in levels],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for _, depth, _ in reversed(levels)],
        # The middle has the depth of the innermost level; a level without attention has none to be told apart.
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-2]), depths[-1]],
        "cross_attention_dim": layout.shape(f"{mid}.transformer_blocks.0.attn2.to_k.weight")[1],
        "attention_head_dim": [_heads(layout, original, width) for width in widths],
        "use_linear_projection": len(layout.shape(f"{mid}.proj_in.weight")) == 2,
        "norm_num_groups": math.gcd(32, *widths),
    }
    if layout.kind == "sdxl":
        added = layout.shape(f"{UNET}label_emb.0.0.weight")[1]
        pooled = layout.shape(f"{XL_OPEN_CLIP}text_projection")[1]
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (added - pooled) // 6,  # six numbers: sizes and cropping
            "projection_class_embeddings_input_dim": added,
        }
    elif f"{UNET}label_emb.0.0.weight" in layout.shapes:
        raise ModelError(f"{layout.file} has a denoiser that reads more than noise and text; it is not understood")
    return config


def _levels(layout: Layout) -> list[tuple[int, int, int]]:
    """From the outermost level in, its width, the depth of its transformers and how many layers it has. The original
    code numbers layers and what shrinks the picture between two levels in one row."""
    levels: list[list[tuple[int, int]]] = [[]]
    for i in range(1, layout.count(f"{UNET}input_blocks.")):
        block = f"{UNET}input_blocks.{i}"
        if f"{block}.0.op.weight" in layout.shapes:
            levels.append([])
            continue
        width = layout.shape(f"{block}.0.out_layers.3.weight")[0]
        levels[-1].append((width, layout.count(f"{block}.1.transformer_blocks.")))
    return [(*level[0], len(level)) for level in levels if level]


def _heads(layout: Layout, original: Mapping[str, Any], width: int) -> int:
    """How many heads attention of a ``width`` has."""
    said = original.get("unet", {})
    if isinstance(said, Mapping) and isinstance(said.get("num_head_channels"), int) and said["num_head_channels"] > 0:
        return int(max(1, width // said["num_head_channels"]))
    if isinstance(said, Mapping) and isinstance(said.get("num_heads"), int) and said["num_heads"] > 0:
        return int(said["num_heads"])
    return math.gcd(8, width) if layout.kind == "sd1" else max(1, width // _HEAD)


def _side(layout: Layout, prediction: str) -> int:
    said = layout.metadata.get("modelspec.resolution", "").partition("x")[0]
    factor = 2 ** (layout.count(f"{VAE}encoder.down.") - 1)
    if said.isdigit() and int(said) >= factor:
        return int(said) // factor
    return 64 if layout.kind == "sd2" and prediction == "epsilon" else _SIDE[layout.kind]


def _vae(layout: Layout) -> Config:
    count = layout.count(f"{VAE}encoder.down.")
    blocks = [f"{VAE}encoder.down.{i}.block." for i in range(count)]
    widths = [layout.shape(f"{block}0.conv1.weight")[0] for block in blocks]
    return {
        "in_channels": layout.shape(f"{VAE}encoder.conv_in.weight")[1],
        "out_channels": layout.shape(f"{VAE}decoder.conv_out.weight")[0],
        "latent_channels": layout.shape(f"{VAE}decoder.conv_in.weight")[1],
        "block_out_channels": widths,
        "layers_per_block": layout.count(blocks[0]),
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "norm_num_groups": math.gcd(32, *widths),
        "scaling_factor": _SCALE[layout.kind],
        "sample_size": 1024 if layout.kind == "sdxl" else 512,
    }


def _scheduler(layout: Layout, prediction: str) -> Config:
    return {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        **({"set_alpha_to_one": False} if layout.kind != "sdxl" else {}),
        **({"clip_sample": False} if layout.kind == "sd2" else {}),
        **({"skip_prk_steps": True} if layout.kind == "sd1" else {}),
        **({"rescale_betas_zero_snr": True} if "ztsnr" in layout.shapes else {}),
    }


def _text(layout: Layout, tokens: str, positions: str, layers: int, wide: str) -> Config:
    vocabulary, width = layout.shape(tokens)
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": layout.shape(wide)[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // _HEAD),
        "max_position_embeddings": layout.shape(positions)[0],
        "bos_token_id": 0,
        "eos_token_id": 2,  # as CLIP's own has it: the end is then the token of the highest number
        "pad_token_id": 1,
    }


def _clip(layout: Layout, prefix: str) -> Config:
    """OpenAI's CLIP, ViT-L/14 in the real ones."""
    common = _text(
        layout, f"{prefix}embeddings.token_embedding.weight", f"{prefix}embeddings.position_embedding.weight",
        layout.count(f"{prefix}encoder.layers."), f"{prefix}encoder.layers.0.mlp.fc1.weight",
    )  # fmt: skip
    return common | {"hidden_act": "quick_gelu", "projection_dim": 768}


def _open_clip(layout: Layout, prefix: str, name: str) -> Config:
    """OpenCLIP: ViT-H/14 in SD 2.x, whose last layer is not used and left out, ViT-bigG/14 in SDXL."""
    blocks = f"{prefix}transformer.resblocks."
    last = layout.count(blocks)
    common = _text(
        layout, f"{prefix}token_embedding.weight", f"{prefix}positional_embedding",
        last if name == "text_encoder_2" else min(last, 23), f"{blocks}0.mlp.c_fc.weight",
    )  # fmt: skip
    projected = layout.shape(f"{prefix}text_projection")[1] if name == "text_encoder_2" else 512
    return common | {"hidden_act": "gelu", "projection_dim": projected}


def vocabulary_sizes(layout: Layout) -> Mapping[str, int]:
    """The size of each text encoder's vocabulary."""
    names = {CLIP: "embeddings.token_embedding.weight", XL_CLIP: "embeddings.token_embedding.weight"}
    return {
        name: layout.shape(prefix + names.get(prefix, "token_embedding.weight"))[0]
        for name, prefix in TEXT_MODELS[layout.kind].items()
    }
