"""Checkpoints of the official OFA code (fairseq `.pt` files) → a folder that `from_pretrained` loads.

The tensors' names and shapes say what the model is; the training arguments stored beside them (`args` or `cfg`) add
what no shape can tell, such as drop rates and how positions enter the model. Nothing in the file is executed.
"""

import errno
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_ofa import OFAConfig
from modeling_ofa.image_processing_ofa import OFAImageProcessor
from modeling_ofa.processing_ofa import OFAProcessor
from modeling_ofa.tokenization_ofa import OFATokenizer

from .common import (
    as_plain,
    check_supported,
    check_target,
    load_torch_file,
    make_config,
    only_tensors,
    resolve_dtype,
    write_folder,
)


logger = logging.getLogger(__name__)

# Tables that the model computes anew from its configuration, and fairseq's version marks.
RECOMPUTED = re.compile(r"(^|\.)(version|_float_tensor|token_rp_bucket|image_rp_bucket|image_position_idx)$")

# (pattern, replacement) from official names to ours; ours pass through unchanged.
RENAMES = [
    (re.compile(r"^encoder\.layers\.(\d+)\.attn_ln\."), r"encoder.layers.\1.self_attn_mid_layer_norm."),
    (re.compile(r"^decoder\.layers\.(\d+)\.self_attn_ln\."), r"decoder.layers.\1.self_attn_mid_layer_norm."),
    (re.compile(r"^decoder\.layers\.(\d+)\.cross_attn_ln\."), r"decoder.layers.\1.cross_attn_mid_layer_norm."),
    (re.compile(r"^decoder\.layers\.(\d+)\.encoder_attn_layer_norm\."), r"decoder.layers.\1.cross_attn_layer_norm."),
    (re.compile(r"^decoder\.layers\.(\d+)\.encoder_attn\."), r"decoder.layers.\1.cross_attn."),
    (re.compile(r"^((?:en|de)coder\.layers\.\d+)\.ffn_layernorm\."), r"\1.ffn_layer_norm."),
]
HEAD = re.compile(r"^classification_heads\.([^.]+)\.")
OUR_HEAD = "classification_head."

RESNETS: dict[tuple[int, ...], tuple[str, ...]] = {
    (2, 2, 2): ("resnet18",),
    (3, 4, 6): ("resnet50", "resnet34"),
    (3, 4, 23): ("resnet101",),
    (3, 8, 36): ("resnet152",),
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
}
SUPPORTED = {
    "no_scale_embedding": (True, "embeddings are not multiplied by the square root of their size"),
    "sync_bn": (False, "batch norms have an epsilon of 1e-5"),
    "pooler_activation_fn": ("tanh", "the classification head uses tanh"),
}
# Official argument → (our field, the official architecture's value where a checkpoint's arguments lack it).
FROM_ARGS: dict[str, tuple[str, Any]] = {
    "dropout": ("dropout", 0.0),
    "attention_dropout": ("attention_dropout", 0.0),
    "activation_dropout": ("activation_dropout", 0.0),
    "pooler_dropout": ("classifier_dropout", 0.0),
    "encoder_layerdrop": ("encoder_layerdrop", 0.0),
    "decoder_layerdrop": ("decoder_layerdrop", 0.0),
    "resnet_drop_path_rate": ("resnet_drop_path_rate", 0.0),
    "encoder_drop_path_rate": ("encoder_drop_path_rate", 0.0),
    "decoder_drop_path_rate": ("decoder_drop_path_rate", 0.0),
    "attn_scale_factor": ("attn_scale_factor", 2.0),
    "entangle_position_embedding": ("entangle_position_embedding", False),
    "disable_entangle": ("disable_entangle", False),
    "interpolate_position": ("interpolate_position", False),
    "orig_patch_image_size": ("orig_patch_image_size", 256),
    "code_image_size": ("code_image_size", 128),
}


def rename(key: str) -> str:
    """Gives our name (without the `model.` prefix) of a tensor with an official name; our own names stay."""
    for pattern, replacement in RENAMES:
        key = pattern.sub(replacement, key)
    return key


def strip(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames every key and takes away a prefix that wrappers or our own classes put before all names."""
    for prefix in ("module.", "model."):
        if any(key.startswith((f"{prefix}encoder.", f"{prefix}decoder.")) for key in state_dict):
            state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return {rename(key): value for key, value in state_dict.items()}


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers; tensors without data (meta) count as equal if their shapes are."""
    if a.shape != b.shape:
        return False
    if a is b or a.is_meta or b.is_meta:
        return True
    return torch.equal(a, b.to(a.dtype))


def check_is_ofa(state_dict: Mapping[str, Any], where: str = "the checkpoint") -> None:
    """Raises a `ValueError` that says what the tensors look like if they are not those of an OFA model."""
    state = strip({key: value for key, value in state_dict.items() if isinstance(key, str)})
    wanted = {
        "encoder.embed_tokens.weight": "the token embedding",
        "encoder.embed_images.": "the image encoder",
        "encoder.token_rel_pos_table_list.0.weight": "the encoder's relative positions",
        "decoder.layers.0.": "the decoder",
        "decoder.cross_pos_q_linear.weight": "the decoder's positions",
    }
    lacking = [f"{what} ({key}…)" for key, what in wanted.items() if not any(k.startswith(key) for k in state)]
    if not lacking:
        return
    raise ValueError(
        f"{where} is not an OFA model: it lacks {', '.join(lacking)}. It looks like {_describe(state)}. "
        "Expected is a checkpoint of the OFA repository with the encoder and the decoder of one model."
    )


def _describe(state: Mapping[str, Any]) -> str:
    """Guesses in a few words what a state dict belongs to."""
    if not state:
        return "an empty state dict"
    families = {
        "a part of an OFA model": ("encoder.embed_images.", "decoder.cross_pos_q_linear."),
        "a VQGAN (the image tokenizer)": ("quantize.", "post_quant_conv."),
        "a CLIP model": ("visual.", "text_model.", "vision_model."),
        "a BERT model": ("bert.", "roberta."),
        "a T5 model": ("encoder.block.", "decoder.block."),
        "a GPT model": ("transformer.h.", "wte."),
        "another encoder-decoder of fairseq or transformers (BART?)": ("encoder.layers.", "decoder.layers."),
        "an image classifier (ResNet or ViT)": ("layer1.", "blocks.", "patch_embed."),
    }
    for name, prefixes in families.items():
        if any(re.match(r"(model\.)?" + re.escape(p), key) for key in state for p in prefixes):
            return name
    return f"something else with {len(state)} tensors ({', '.join(sorted(state)[:3])}, …)"


def _count(state: Mapping[str, Any], prefix: str) -> int:
    """Number of entries of the module list whose tensors' names start with `prefix`."""
    return len({key[len(prefix) :].split(".", 1)[0] for key in state if key.startswith(prefix)})


def shapes_to_fields(
    state: Mapping[str, torch.Tensor], resnet_type: str | None = None, head: str | None = None
) -> dict[str, Any]:
    """
    Reads from names and shapes the configuration fields that they determine.

    Args:
        state (`Mapping[str, torch.Tensor]`): tensors by our names, without the `model.` prefix.
        resnet_type (`str`, *optional*): the backbone's recorded name, which chooses between names of equal shapes.
        head (`str`, *optional*): what the names of the classification head's tensors start with.

    Returns:
        `dict[str, Any]`: fields of [`OFAConfig`].
    """

    def size(key: str, rank: int = 2) -> tuple[int, ...]:
        if key not in state:
            raise ValueError(f"The checkpoint lacks {key}, which every OFA model has.")
        if state[key].dim() != rank:
            raise ValueError(f"{key} is {list(state[key].shape)}, but it should have {rank} dimensions.")
        return tuple(state[key].shape)

    def rows(key: str) -> int:
        return size(key)[0]

    vocab_size, d_model = size("encoder.embed_tokens.weight")
    fields: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "max_position_embeddings": rows("encoder.embed_positions.weight") - 2,
        "layernorm_embedding": "encoder.layernorm_embedding.weight" in state,
        "patch_layernorm_embedding": "encoder.patch_layernorm_embedding.weight" in state,
        "code_layernorm_embedding": "decoder.code_layernorm_embedding.weight" in state,
        "add_type_embedding": "encoder.type_embedding.weight" in state,
        "token_bucket_size": (rows("encoder.token_rel_pos_table_list.0.weight") + 1) // 2,
        "scale_attn": "encoder.layers.0.self_attn_mid_layer_norm.weight" in state,
        "scale_fc": "encoder.layers.0.ffn_layer_norm.weight" in state,
        "scale_heads": "encoder.layers.0.self_attn.c_attn" in state,
        "scale_resids": "encoder.layers.0.w_resid" in state,
    }
    if fields["add_type_embedding"]:
        fields["type_vocab_size"] = rows("encoder.type_embedding.weight")
    # (2 * size - 1) ** 2 relative places and three extra rows
    image_rows = rows("encoder.image_rel_pos_table_list.0.weight") - 3
    fields["image_bucket_size"] = (round(image_rows**0.5) + 1) // 2
    for part in ("encoder", "decoder"):
        fields[f"{part}_layers"] = _count(state, f"{part}.layers.")
        fields[f"{part}_attention_heads"] = size(f"{part}.token_rel_pos_table_list.0.weight")[1]
        fields[f"{part}_ffn_dim"] = rows(f"{part}.layers.0.fc1.weight")
        fields[f"{part}_normalize_before"] = f"{part}.layer_norm.weight" in state
        prompt = f"{part}.{part}_prompt_encoder."
        if f"{prompt}embedding.weight" in state:
            fields[f"{part}_prompt_length"] = rows(f"{prompt}embedding.weight")
            if f"{prompt}trans.0.weight" in state:
                fields[f"{part}_prompt_projection_dim"] = rows(f"{prompt}trans.0.weight")
    if "encoder.layers.0.adapter.down_proj.weight" in state:
        fields["adapter_dim"] = rows("encoder.layers.0.adapter.down_proj.weight")

    images = "encoder.embed_images."
    if f"{images}positional_embedding" in state:
        fields["resnet_type"] = "ViT-B/16"
    else:
        depths = tuple(_count(state, f"{images}layer{stage}.") for stage in (1, 2, 3))
        names = RESNETS.get(depths, ())
        if names:
            fields["resnet_type"] = resnet_type if resnet_type in names else names[0]
        else:
            fields["resnet_depths"] = list(depths)
        if f"{images}conv1.weight" in state:
            fields["resnet_embedding_size"] = size(f"{images}conv1.weight", rank=4)[0]
        # frozen batch norms keep their statistics but count no batches
        fields["freeze_resnet"] = not any(k.startswith(images) and k.endswith("num_batches_tracked") for k in state)

    shared, *copies = embeddings(state)
    # a classifier has no output projection
    fields["tie_word_embeddings"] = all(_same(shared, copy) for copy in copies[: 1 if head else 2])

    if "image_position_idx" in {key.rpartition(".")[2] for key in state}:
        window = _window(state["decoder.image_position_idx"])
        if window:
            fields["code_image_size"] = 8 * window
    if head is not None:
        fields["pooler_classifier"] = "mlp" if f"{head}dense.weight" in state else "linear"
        fields["num_labels"] = rows(f"{head}out_proj.weight")
    return fields


def embeddings(state: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The token embeddings of encoder, decoder and output projection; what a checkpoint leaves out is shared."""
    encoder = state["encoder.embed_tokens.weight"]
    decoder = state.get("decoder.embed_tokens.weight", encoder)
    output = state.get("lm_head.weight", state.get("decoder.output_projection.weight", decoder))
    return encoder, decoder, output


def choose_head(state: Mapping[str, Any], head: str | None = None) -> str | None:
    """
    Gives the prefix of the classification head's tensors, or None if there is no head.

    Args:
        state (`Mapping[str, Any]`): tensors by official or by our names.
        head (`str`, *optional*): the head's name, if there are several.

    Raises:
        `ValueError`: if no head has that name, or if there are several and none was named.
    """
    heads = sorted({match[1] for match in map(HEAD.match, state) if match})
    if head is None and len(heads) > 1:
        raise ValueError(f"The checkpoint has several classification heads ({', '.join(heads)}); choose one (--head).")
    if head is not None and head not in heads:
        raise ValueError(f"The checkpoint has no classification head {head!r}; it has {', '.join(heads) or 'none'}.")
    if heads:
        return f"classification_heads.{head or heads[0]}."
    return OUR_HEAD if any(key.startswith(OUR_HEAD) for key in state) else None


def _window(image_position_idx: torch.Tensor) -> int:
    """Codes in a row of the grid recorded in the decoder's table `[0, 1, 2, …, window, 43, …]`; 0 if it holds none."""
    if image_position_idx.is_meta:
        return 0
    ids = image_position_idx.tolist()
    window = 0
    while window + 1 < len(ids) and ids[window + 1] == window + 1:
        window += 1
    return window


def args_to_fields(args: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the official training arguments that no shape can tell into fields of [`OFAConfig`]."""
    check_supported(args, SUPPORTED)
    fields = {}
    for name, (field, default) in FROM_ARGS.items():
        value = default if args.get(name) is None else args[name]
        if not isinstance(value, bool | int | float):
            raise ValueError(
                f"The checkpoint was trained with {name} {value!r}; a number or a truth value is expected."
            )
        fields[field] = type(default)(value)
    activation = args.get("activation_fn") or "gelu"
    if activation not in ACTIVATIONS:
        raise ValueError(f"The checkpoint's activation_fn {activation!r} is none of {', '.join(ACTIVATIONS)}.")
    fields["activation_function"] = ACTIVATIONS[activation]
    return fields


def infer_config(
    state_dict: Mapping[str, torch.Tensor], args: Mapping[str, Any] | None = None, head: str | None = None
) -> OFAConfig:
    """
    Infers the configuration of the model that a state dict belongs to. Shapes come first.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): tensors by official or by our names; tensors on the meta device do.
        args (`Mapping[str, Any]`, *optional*): the official training arguments. Without them the fields that no shape
            tells keep the defaults of [`OFAConfig`].
        head (`str`, *optional*): which classification head is meant if there are several.

    Returns:
        [`OFAConfig`]: with `tie_word_embeddings=False` if encoder, decoder and output projection do not share one
            embedding.

    Raises:
        `ValueError`: if the tensors are not those of an OFA model, or were trained with a setting that we have not.
    """
    check_is_ofa(state_dict)
    state = strip(state_dict)
    fields = shapes_to_fields(state, (args or {}).get("resnet_type"), choose_head(state, head))
    if args is not None:
        told = args_to_fields(args)
        # The official code makes the table of code positions anew from its argument, whatever the checkpoint holds.
        if args.get("code_image_size") is None and "code_image_size" in fields:
            del told["code_image_size"]
        fields |= told
    return make_config(fields)


def to_native(
    state_dict: Mapping[str, torch.Tensor], config: OFAConfig | None = None, head: str | None = None
) -> dict[str, torch.Tensor]:
    """
    Renames an official state dict to the names of [`OFAForConditionalGeneration`], or, with a classification head,
    of [`OFAForSequenceClassification`]. Tensors are passed on, not copied.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): tensors by official or by our names.
        config ([`OFAConfig`], *optional*): the model's configuration; inferred from the shapes without it.
        head (`str`, *optional*): which classification head to take if there are several.

    Returns:
        `dict[str, torch.Tensor]`: without the tables that the model recomputes, and with the decoder's embedding and
        `lm_head.weight` only if they are not tied to the encoder's embedding.

    Raises:
        `ValueError`: if it is unclear which head is meant.
    """
    config = infer_config(state_dict, head=head) if config is None else config
    state = strip(state_dict)
    prefix = choose_head(state, head)

    native: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if RECOMPUTED.search(key) or (config.freeze_resnet and key.endswith(".num_batches_tracked")):
            continue
        if key in ("decoder.embed_tokens.weight", "decoder.output_projection.weight", "lm_head.weight"):
            continue
        if prefix is not None and key.startswith(prefix):
            native[OUR_HEAD + key.removeprefix(prefix)] = tensor
        elif HEAD.match(key):
            continue  # a head that was not chosen
        else:
            native[f"model.{key}"] = tensor
    if not config.tie_word_embeddings:
        _, native["model.decoder.embed_tokens.weight"], output = embeddings(state)
        if prefix is None:
            native["lm_head.weight"] = output
    return native


def training_args(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    Finds the training arguments in a checkpoint: `args` (a namespace) as older code wrote them, or the `model` and
    `task` sections of `cfg` as newer code does. None if it holds neither.
    """
    args, cfg = as_plain(checkpoint.get("args")), as_plain(checkpoint.get("cfg"))
    for found in (args, cfg):
        if found and not isinstance(found, dict):
            raise ValueError(
                f"The checkpoint's training arguments are a {type(found).__name__}, not names with values."
            )
    if args or not cfg:
        return args or None
    sections = [section for section in (cfg.get("task"), cfg.get("model")) if isinstance(section, dict)]
    return {key: value for section in sections or [cfg] for key, value in section.items()}


def read_checkpoint(path: str | os.PathLike, ema: bool = False) -> tuple[dict[str, torch.Tensor], dict | None]:
    """
    Reads an official checkpoint, or a bare state dict.

    Args:
        path (`str` or `os.PathLike`): a file that `torch.save` wrote.
        ema (`bool`, defaults to `False`): whether to take the averaged weights that training with `--store-ema` keeps.

    Returns:
        `tuple[dict[str, torch.Tensor], dict | None]`: the tensors by official names and the training arguments.

    Raises:
        `ValueError`: if the file is no checkpoint of an OFA model, or holds no averaged weights.
    """
    checkpoint = load_torch_file(path)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint: a dictionary is needed.")
    if "model" not in checkpoint:
        args, state = None, checkpoint
    else:
        args, state = training_args(checkpoint), checkpoint["model"]
    state = only_tensors(state, str(path))
    if ema:
        extra = checkpoint.get("extra_state")
        extra = extra if isinstance(extra, Mapping) else {}
        if not extra.get("ema"):
            raise ValueError(f"{path} holds no averaged weights (extra_state/ema); convert it without --ema.")
        for name in ("ema", "ema_fp32_params"):
            state |= only_tensors(extra.get(name) or {}, f"{path}, extra_state/{name}")
    check_is_ofa(state, str(path))
    return state, args


def load_processor(
    vocab: str | os.PathLike | None, config: OFAConfig, args: Mapping[str, Any] | None = None
) -> OFAProcessor | None:
    """
    Makes the processor of a converted model.

    Args:
        vocab (`str` or `os.PathLike`, *optional*): folder with the tokenizer's files (`vocab.json` and `merges.txt`,
            or `vocab.txt`).
        config ([`OFAConfig`]): the model's configuration; its vocabulary must have room for the tokenizer's.
        args (`Mapping[str, Any]`, *optional*): the official training arguments, for the size and normalisation of
            images, the number of codes and places in the vocabulary and what the decoder reads before it answers; and
            `num_beams`, the beams that the checkpoint wants.

    Returns:
        [`OFAProcessor`], or None without `vocab`, which is logged.

    Raises:
        `FileNotFoundError`: if there is no such folder.
        `ValueError`: if the tokenizer knows more tokens than the model.
    """
    if vocab is None:
        logger.warning(
            "No vocabulary was given, so the model alone is written; --vocab FOLDER (with vocab.json and merges.txt, "
            "or vocab.txt) adds the tokenizer and the processor."
        )
        return None
    if not Path(vocab).is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder with the tokenizer's files", str(vocab))
    args = args or {}
    counts = {"num_codes": args.get("code_dict_size"), "num_bins": args.get("num_bins")}
    tokenizer = OFATokenizer.from_pretrained(vocab, **{key: value for key, value in counts.items() if value})
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer of {vocab} has {len(tokenizer):,} tokens, but the model only {config.vocab_size:,}: "
            "these are the files of another model."
        )
    settings: dict[str, Any] = {}
    if args.get("patch_image_size"):
        side = int(args["patch_image_size"])
        settings["size"] = {"height": side, "width": side}
    if args.get("imagenet_default_mean_and_std"):
        settings.update(image_mean=list(IMAGENET_DEFAULT_MEAN), image_std=list(IMAGENET_DEFAULT_STD))
    return OFAProcessor(
        OFAImageProcessor(**settings),
        tokenizer,
        max_image_size=args.get("max_image_size") or 512,
        num_beams=args.get("num_beams"),
        decoder_prompt=args.get("prompt_type") or "none",
    )


def convert(
    checkpoint: str | os.PathLike,
    out_dir: str | os.PathLike,
    vocab: str | os.PathLike | None = None,
    dtype: str | torch.dtype | None = None,
    ema: bool = False,
    head: str | None = None,
) -> Path:
    """
    Converts an official checkpoint to a folder that `from_pretrained` loads, and checks it by loading it.

    Args:
        checkpoint (`str` or `os.PathLike`): the `.pt` file.
        out_dir (`str` or `os.PathLike`): the folder to make; it must not exist yet, or be empty.
        vocab (`str` or `os.PathLike`, *optional*): folder with the tokenizer's files. Without it the model alone is
            written.
        dtype (`str` or `torch.dtype`, *optional*): `float32`, `float16` or `bfloat16`; as stored without it.
        ema (`bool`, defaults to `False`): whether to take the averaged weights.
        head (`str`, *optional*): which classification head to take if there are several.

    Returns:
        `Path`: the folder.

    Raises:
        `FileNotFoundError`: if `checkpoint` or `vocab` does not exist.
        `FileExistsError`: if `out_dir` is a file or holds something.
        `ValueError`: if the checkpoint cannot be read, or is none of an OFA model that we can represent.
        `OSError`: if the disk is full or cannot be written to.
    """
    check_target(out_dir)
    torch_dtype = resolve_dtype(dtype)
    state, args = read_checkpoint(checkpoint, ema)
    if args is None:
        logger.warning(
            "%s holds no training arguments: the architecture comes from the shapes, and what they cannot tell "
            "(drop rates, attention scale, entangled or interpolated positions) is assumed to be as in OFAConfig.",
            checkpoint,
        )
    config = infer_config(state, args, head)
    tensors = to_native(state, config, head)
    return write_folder(out_dir, config, tensors, torch_dtype, load_processor(vocab, config, args))
