"""The modules of an OFA model that `peft` adapts unless it is told others."""

import functools
import re

from transformers.utils import is_peft_available


# As peft's own tables have it for BART, on the layers of both stacks; neither the image backbone nor the tied head.
_ATTENTION = ["q_proj", "v_proj"]
_LINEAR = ["q_proj", "k_proj", "v_proj", "self_attn.out_proj", "cross_attn.out_proj", "fc1", "fc2"]
_METHODS = {
    "ADALORA": _LINEAR,  # starts from many and takes away
    "BEFT": ["v_proj"],
    "IA3": ["k_proj", "v_proj", "fc2"],  # keys, values and what the second feed-forward layer reads (the paper's)
    "IA3_FEEDFORWARD": ["fc2"],
    "LNTUNING": [
        "self_attn_layer_norm",
        "self_attn_mid_layer_norm",
        "cross_attn_layer_norm",
        "cross_attn_mid_layer_norm",
        "ffn_layer_norm",
        "final_layer_norm",
        "layer_norm",
    ],
    "OSF": _LINEAR,
    "VBLORA": _LINEAR,
}


@functools.cache
def register_peft_targets():
    """
    Adds OFA to the tables of every method of `peft`, where that is installed, so that `LoraConfig()` alone will do.
    `peft` reads them when it gets a model, so they are filled when the first one is built. A row that is there stays.
    """
    if is_peft_available():
        from peft.utils import constants

        for name, rows in vars(constants).items():
            method = re.fullmatch(r"TRANSFORMERS_MODELS_TO_(\w+?)(_TARGET)?_MODULES_MAPPING", name)
            if method:
                rows.setdefault("ofa", _METHODS.get(method[1], _ATTENTION))


__all__ = ["register_peft_targets"]
