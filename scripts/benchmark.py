"""
Times OFA beside a plain reference path, and prints ratios.

    python scripts/benchmark.py --size base --image-size 480 --output base.json

Four jobs are timed: `encode` (image and text through the encoder), `caption` (beam search to a fixed number of
tokens), `train` (forward, backward and optimizer step) and `candidates` (the probability of each of 3,129 answers, of
the whole call and of its decoder's part). The reference is the same network and weights, run as the older ports run
it: attention in plain steps, the position bias copied for every row, encoder outputs copied for every beam, and no
cache; candidates as the official evaluation scores them, in chunks of 20, each decoded whole behind its prompt with
logits of the whole vocabulary. As that takes many minutes, only some of these chunks are timed, and their time is
scaled up to all. Both paths take turns in one process, so that a busy machine slows both; medians are reported.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AttentionInterface, GenerationMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

from modeling_ofa import OFAConfig, OFAForConditionalGeneration
from modeling_ofa.layers_ofa import eager_attention_forward
from modeling_ofa.modeling_ofa import OFAEncoderOutput
from modeling_ofa.trie_ofa import AnswerTrie


JOBS = ("encode", "caption", "train", "candidates")
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


# How many of the 3,129 answers of VQAv2 have one, two, … tokens.
VQA_LENGTHS = (1700, 930, 440, 46, 13)
# Answers that the official evaluation decodes at a time.
CHUNK = 20


def build_answers(words: int) -> list[list[int]]:
    """
    Random answers that share beginnings as VQAv2's do. Those of one token are the 1,700 most frequent words; in longer
    ones, the rank of a word is 10,000 times the sixth power of a uniform number. The real list has 2,026 first tokens
    and a tree of 6,930 nodes, 467 of them with a choice at or below them; this one has 2,097, 7,169 and 478.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = (4 + torch.randperm(words - 4, generator=generator)).tolist()
    answers: dict[tuple[int, ...], None] = {}
    for length, count in enumerate(VQA_LENGTHS, start=1):
        enough = len(answers) + count
        while len(answers) < enough:
            ranks = [len(answers)] if length == 1 else (torch.rand(length, generator=generator) ** 6 * 10000).tolist()
            answers[tuple(vocabulary[int(rank)] for rank in ranks)] = None
    shuffled = torch.randperm(len(answers), generator=generator).tolist()
    return [list(list(answers)[i]) for i in shuffled]


def padded(rows: list[list[int]], fill: int, device: torch.device) -> torch.Tensor:
    """Rows as one tensor, filled up on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill).to(device)


def score_whole(
    model: OFAForConditionalGeneration,
    encoded: OFAEncoderOutput,
    prompts: torch.Tensor,
    answers: list[list[int]],
    allowed: torch.Tensor,
) -> torch.Tensor:
    """
    Log-probabilities `(images, answers)` as the official evaluation computes them: one row for each answer of each
    image, with a copy of the image's states. `allowed` `(answers, length, vocab_size)` says what may come next.
    """
    config, device = model.config, prompts.device
    images, count = len(prompts), len(answers)
    positions = encoded.position_embeddings.expand(images, -1, -1)
    copied = OFAEncoderOutput(
        last_hidden_state=encoded.last_hidden_state.repeat_interleave(count, dim=0),
        attention_mask=encoded.attention_mask.repeat_interleave(count, dim=0),
        position_embeddings=positions.repeat_interleave(count, dim=0),
    )
    read = padded(answers, config.pad_token_id, device).repeat(images, 1)
    target = padded([[*answer, config.eos_token_id] for answer in answers], config.pad_token_id, device)
    decoder_input_ids = torch.cat([prompts.repeat_interleave(count, dim=0), read], dim=1)
    logits = model(encoder_outputs=copied, decoder_input_ids=decoder_input_ids).logits[:, -target.shape[1] :]
    masked = logits.masked_fill(~allowed.repeat(images, 1, 1), -torch.inf)
    log_probs = masked.float().log_softmax(-1).gather(-1, target.repeat(images, 1)[..., None])[..., 0]
    return log_probs.masked_fill(target.eq(config.pad_token_id).repeat(images, 1), 0.0).sum(-1).view(images, count)


def allowed_tokens(trie: AnswerTrie, answers: list[list[int]], vocab_size: int) -> torch.Tensor:
    """What may follow each beginning of each answer: `(answers, length, vocab_size)`; anything after its end."""
    allowed = torch.ones(len(answers), max(map(len, answers)) + 1, vocab_size, dtype=torch.bool)
    for row, answer in enumerate(answers):
        node = torch.tensor(0)
        for step in range(len(answer) + 1):
            allowed[row, step] = False
            allowed[row, step, trie.tokens[trie.first_child[node] : trie.first_child[node + 1]]] = True
            if step < len(answer):
                node = trie.descend(node, torch.tensor(answer[step]))
    return allowed


@torch.no_grad()
def measure_candidates(
    ours: OFAForConditionalGeneration,
    reference: OFAForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """
    Two rows, the whole call and the decoder's part of it, with VQA's prompt: the question again. The reference is
    timed on the first `args.chunks` of its chunks.

    Raises:
        AssertionError: Both paths give different scores.
    """
    for model in (ours, reference):
        model.eval()
    answers = build_answers(min(ours.config.vocab_size, 50000))
    trie = AnswerTrie(answers, ours.config.eos_token_id)
    chunks = [answers[i : i + CHUNK] for i in range(0, len(answers), CHUNK)]
    timed = chunks[: args.chunks]
    scale = len(answers) / sum(len(chunk) for chunk in timed)
    masks = [allowed_tokens(trie, chunk, ours.config.vocab_size).to(args.device) for chunk in timed]
    trie = trie.to(args.device)
    encoder_inputs = {key: value for key, value in inputs.items() if key != "labels"}
    prompts = inputs["input_ids"][:, :-1]
    outputs: dict[str, Any] = {}

    def encode(model: OFAForConditionalGeneration) -> None:
        outputs["encoded"] = model.get_encoder()(**encoder_inputs)

    def decode() -> None:
        prompted = {"encoder_outputs": outputs["encoded"], "decoder_input_ids": prompts}
        outputs["ours"] = ours.score_candidates(prompted, trie)

    def decode_whole() -> None:
        scores = [
            score_whole(reference, outputs["encoded"], prompts, chunk, mask)
            for chunk, mask in zip(timed, masks, strict=True)
        ]
        outputs["reference"] = torch.cat(scores, dim=1)

    times: dict[str, list[tuple[float, ...]]] = {"candidates": [], "candidates (decoder)": []}
    for run in tqdm(range(args.warmup + args.repeats), desc="candidates", disable=None):
        elapsed = []
        for model, job, factor in ((ours, decode, 1.0), (reference, decode_whole, scale)):
            encoding = seconds(lambda model=model: encode(model), args.device)
            elapsed.append((encoding, seconds(job, args.device) * factor))
        tolerance = 1e-3 if args.dtype == torch.float32 else 0.5
        scored = outputs["reference"].shape[1]
        torch.testing.assert_close(outputs["ours"][:, :scored], outputs["reference"], atol=tolerance, rtol=0)
        if run >= args.warmup:
            times["candidates"].append(tuple(sum(parts) for parts in elapsed))
            times["candidates (decoder)"].append(tuple(parts[1] for parts in elapsed))
    return [row_of(name, *zip(*records, strict=True)) for name, records in times.items()]


def row_of(job: str, ours: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Medians in seconds of both paths, and the ratio reference / ours of the medians."""
    medians = [statistics.median(record) for record in (ours, reference)]
    return {"job": job, "seconds": medians[0], "reference": medians[1], "ratio": medians[1] / medians[0]}


def seconds(job: Callable[[], None], device: torch.device) -> float:
    """How long `job` takes, with all its work on the device."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    job()
    synchronize()
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a job, and two of candidates."""
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
        if job == "candidates":
            rows += measure_candidates(ours, reference, inputs, args)
            continue
        paths = [build_job(job, model, inputs, args) for model in (ours, reference)]
        times: list[list[float]] = [[], []]
        for run in tqdm(range(args.warmup + args.repeats), desc=job, disable=None):
            for path, record in zip(paths, times, strict=True):
                elapsed = seconds(path, args.device)
                if run >= args.warmup:
                    record.append(elapsed)
        rows.append(row_of(job, *times))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", help="tiny, medium, base, large or huge (default: %(default)s)")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), help="what to time (default: all)")
    parser.add_argument("--batch", type=int, default=1, help="pictures a call (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=480, help="pixels a side (default: %(default)s)")
    parser.add_argument("--beams", type=int, default=5, help="beams of a caption (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a caption or target (default: %(default)s)")
    parser.add_argument("--chunks", type=int, default=4, help="of 20 candidates to time (default: %(default)s)")
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
    print(f"\n{'job':<21}{'seconds':>10}{'reference':>11}{'ratio':>8}")
    for row in rows:
        print(f"{row['job']:<21}{row['seconds']:>10.3f}{row['reference']:>11.3f}{row['ratio']:>7.2f}x")
    if args.output:
        args.output.write_text(json.dumps({"setting": setting, "results": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
