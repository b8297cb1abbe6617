"""
Times OFA beside a plain reference path, and prints ratios.

    python scripts/benchmark.py --size base --image-size 480 --output base.json

Three jobs are timed: `encode` (image and text through the encoder), `caption` (beam search to a fixed number of
tokens) and `train` (forward, backward and optimizer step). The reference is the same network and weights, run as the
older ports run it: attention in plain steps, the position bias copied for every row, encoder outputs copied for every
beam, and no cache. Both paths take turns in one process, so that a busy machine slows both; medians are reported.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import AttentionInterface, GenerationMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

from modeling_ofa import OFAConfig, OFAForConditionalGeneration
from modeling_ofa.layers_ofa import eager_attention_forward


JOBS = ("encode", "caption", "train")
REFERENCE = "bias_per_row"


def attention_with_bias_per_row(
    module: torch.nn.Module, query: torch.Tensor, *args: Any, position_bias: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager attention with a bias of shape `(batch, heads, queries, keys)`, every row of it in memory."""
    position_bias = position_bias.expand(query.shape[0], -1, -1, -1).contiguous()
    return eager_attention_forward(module, query, *args, position_bias=position_bias, **kwargs)


AttentionInterface.register(REFERENCE, attention_with_bias_per_row)
ALL_MASK_ATTENTION_FUNCTIONS.register(REFERENCE, eager_mask)


class ReferenceOFA(OFAForConditionalGeneration):
    """OFA whose `generate` copies the encoder's output for every beam."""

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any):
        encoder_outputs = kwargs["encoder_outputs"]
        rows = encoder_outputs.last_hidden_state.shape[0]
        encoder_outputs.position_embeddings = encoder_outputs.position_embeddings.expand(rows, -1, -1)
        kwargs["is_encoder_decoder"] = True
        return GenerationMixin._expand_inputs_for_generation(self, expand_size=expand_size, **kwargs)


def build_inputs(config: OFAConfig, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """A batch of random pictures with random instructions of eight tokens, and targets of `args.tokens` tokens."""
    generator = torch.Generator().manual_seed(0)
    words = min(config.vocab_size, 50000)
    input_ids = torch.randint(4, words, (args.batch, 10), generator=generator)
    input_ids[:, 0], input_ids[:, -1] = config.bos_token_id, config.eos_token_id
    pixel_values = torch.randn(args.batch, 3, args.image_size, args.image_size, generator=generator)
    labels = torch.randint(4, words, (args.batch, args.tokens), generator=generator)
    return {
        "input_ids": input_ids.to(args.device),
        "pixel_values": pixel_values.to(args.device, args.dtype),
        "labels": labels.to(args.device),
    }


def build_job(
    job: str, model: OFAForConditionalGeneration, inputs: dict[str, torch.Tensor], args: argparse.Namespace
) -> Callable[[], None]:
    """A function that does the job once."""
    model_inputs = {key: value for key, value in inputs.items() if key != "labels"}
    is_reference = isinstance(model, ReferenceOFA)

    def encode() -> None:
        with torch.no_grad():
            model.get_encoder()(**model_inputs)

    def caption() -> None:
        model.generate(
            **model_inputs,
            num_beams=args.beams,
            min_new_tokens=args.tokens,
            max_new_tokens=args.tokens,
            early_stopping=True,
            use_cache=not is_reference,
        )

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5) if job == "train" else None

    def train() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train(job == "train")
    return {"encode": encode, "caption": caption, "train": train}[job]


def seconds(job: Callable[[], None], device: torch.device) -> float:
    """How long `job` takes, with all its work on the device."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    job()
    synchronize()
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a job: medians in seconds of both paths, and the ratio reference / ours of the medians."""
    config = OFAConfig.from_size(args.size)
    torch.manual_seed(0)
    ours = OFAForConditionalGeneration(config).to(args.device, args.dtype)
    ours.set_attn_implementation(args.attention)
    reference = ReferenceOFA(config).to(args.device, args.dtype)
    reference.load_state_dict(ours.state_dict())
    reference.set_attn_implementation(REFERENCE)
    inputs = build_inputs(config, args)
    rows = []
    for job in args.jobs:
        paths = [build_job(job, model, inputs, args) for model in (ours, reference)]
        times: list[list[float]] = [[], []]
        for run in tqdm(range(args.warmup + args.repeats), desc=job, disable=None):
            for path, record in zip(paths, times, strict=True):
                elapsed = seconds(path, args.device)
                if run >= args.warmup:
                    record.append(elapsed)
        medians = [statistics.median(record) for record in times]
        rows.append({"job": job, "seconds": medians[0], "reference": medians[1], "ratio": medians[1] / medians[0]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", help="tiny, medium, base, large or huge (default: %(default)s)")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), help="what to time (default: all)")
    parser.add_argument("--batch", type=int, default=1, help="pictures a call (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=480, help="pixels a side (default: %(default)s)")
    parser.add_argument("--beams", type=int, default=5, help="beams of a caption (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a caption or target (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)")
    parser.add_argument("--attention", default="sdpa", help="eager, sdpa or flex_attention (default: %(default)s)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (default: all)")
    parser.add_argument("--warmup", type=int, default=1, help="runs not counted (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs counted (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="also write the results there, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setting = {
        **{key: value for key, value in vars(args).items() if key not in ("output", "jobs")},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.machine(),
        "cores": os.cpu_count(),
    }
    args.device, args.dtype = torch.device(args.device), getattr(torch, args.dtype)
    rows = measure(args)
    print(f"\n{'job':<10}{'seconds':>10}{'reference':>11}{'ratio':>8}")
    for row in rows:
        print(f"{row['job']:<10}{row['seconds']:>10.3f}{row['reference']:>11.3f}{row['ratio']:>7.2f}x")
    if args.output:
        args.output.write_text(json.dumps({"setting": setting, "results": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
