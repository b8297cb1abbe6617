"""Trains the small OFA that ships inside the package, measures it on a design it never saw, and writes its model card.

`python scripts/build_world.py` must have run. Then

    python scripts/train_embedded.py --output modeling_ofa/assets/checkpoint

trains with `transformers.Trainer` on scenes composed on the fly (`--resume` goes on after an interruption), saves the
model in half precision and measures the saved folder with `scripts/evaluate_embedded.py`.

Few samples go far on a CPU because of four things. The ResNet first learns to classify small pictures of one object
(the official models start from an ImageNet ResNet). It then runs once per scene for the several tasks asked of it. The
targets of box tokens are spread over neighbouring bins, since bins are places on a line. And the encoder's state of a
patch must name the object under it, through the model's own output layer.
"""

import argparse
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from build_world import (
    DEFAULT_CACHE,
    NAMES,
    NUMBERS,
    TRAIN_DESIGNS,
    TRAIN_STREAM,
    Scene,
    World,
    caption,
    one,
    phrases,
    plural,
    questions,
)
from evaluate_embedded import evaluate, write_card
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_ofa import OFAConfig, OFAForConditionalGeneration, OFAImageProcessor, OFAProcessor, OFATokenizer
from modeling_ofa.tasks import TASKS


SIZE = 96  # pixels per side of the pictures that the model is for
PATCH = 16
NUM_BINS = 1000


OBJECT_SIZE, OBJECT_BATCH = 48, 64  # of the pictures of one object that the ResNet starts with
SCENE_BATCH, ROWS = 16, 4  # scenes in a batch, and tasks asked of each
CAPTION, GROUNDING = TASKS["caption"].instruction, TASKS["visual_grounding"].instruction
COUNTS = (1, 2, 2, 3, 3, 4, 4)  # objects in a scene, each number as likely as it is frequent here


# --- model and processor ------------------------------------------------------------------------------------------
def build_processor() -> OFAProcessor:
    """The processor with a byte-level BPE of its own, trained on the words of the world."""
    texts = [f" {text}" for name in NAMES for text in (
        f"{one(name)} and {one(name)}", *(f"{number} {plural(name)}" for number in NUMBERS),
        f"where is the {name}?", f"is there {one(name)}?", f"how many {plural(name)} are there?",
    )]  # fmt: skip
    texts += [f" {side}" for side in "0 1 2 3 4 yes no left right top bottom".split()] * 9
    texts += [" what is on the left?", " what is at the top?", " what is this?", " how many objects are there?"] * 9
    texts += [CAPTION, GROUNDING.replace("{text}", "the dog")] * 9
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(texts, vocab_size=2000, min_frequency=1, show_progress=False)
    trained = json.loads(trainer.to_str())["model"]
    words = [word for word, _ in sorted(trained["vocab"].items(), key=lambda item: item[1])]
    vocab = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words, "<mask>"])}
    merges = [tuple(merge) for merge in trained["merges"]]
    tokenizer = OFATokenizer(vocab, merges, num_codes=0, num_bins=NUM_BINS, model_max_length=128)
    pictures = OFAImageProcessor(size={"height": SIZE, "width": SIZE})
    # Greedy: box targets are spread over many bins, and beams would rather write one likely word than unlikely bins.
    return OFAProcessor(pictures, tokenizer, max_image_size=SIZE, num_beams=1)


def build_model(vocab_size: int) -> OFAForConditionalGeneration:
    """A small OFA with random weights.

    Positions are also added to the content (the published models keep them apart): where things are is then learned
    from far fewer boxes.
    """
    config = OFAConfig(
        vocab_size=vocab_size,
        max_position_embeddings=128,
        d_model=192,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=768,
        decoder_ffn_dim=768,
        dropout=0.0,
        entangle_position_embedding=True,
        disable_entangle=False,
        token_bucket_size=32,
        image_bucket_size=16,
        code_image_size=64,
        resnet_depths=[1, 1, 1],
        resnet_embedding_size=64,
    )
    return OFAForConditionalGeneration(config)


# --- training data -------------------------------------------------------------------------------------------------
class ObjectDataset(Dataset):
    """Small pictures of one object each, and the place of its name in the list of names."""

    def __init__(self, world: World, length: int, seed: int):
        self.world, self.length, self.seeds = world, length, [TRAIN_STREAM, seed, 0]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([*self.seeds, index])
        scene = self.world.compose(rng, TRAIN_DESIGNS, (1,), OBJECT_SIZE, augment=True)
        return {"pixel_values": normalize(scene.pixels[None])[0], "labels": self.world.names.index(scene.names[0])}


class SceneDataset(Dataset):
    """Scenes: pixels, patch names, and token ids of the sources and targets of `ROWS` tasks.

    Token ids and pixels are those of the processor, without its checks (tests compare the two).
    """

    def __init__(self, world: World, tokenizer: OFATokenizer, length: int, seed: int):
        self.world, self.length, self.seeds = world, length, [TRAIN_STREAM, seed, 1]
        self.first_bin = tokenizer.bin_start_id
        self.encode = lru_cache(maxsize=200_000)(lambda text: tokenizer(f" {text}")["input_ids"])
        self.ground_id = tokenizer.mask_token_id  # never a target elsewhere: here it names the bare ground
        self.name_ids = {name: self.encode(name)[1] for name in world.names}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([*self.seeds, index])
        scene = self.world.compose(rng, TRAIN_DESIGNS, COUNTS, SIZE, augment=True)
        return {"pixels": scene.pixels, "patch_names": self.patch_names(scene), "rows": self.rows(scene, rng)}

    def rows(self, scene: Scene, rng: np.random.Generator) -> list[tuple[list[int], list[int]]]:
        """Source and label ids of the scene's tasks: its caption, one or two boxes, and questions."""
        asked = list(questions(scene, rng, self.world.names).values())
        asked = [asked[i] for i in rng.permutation(len(asked))]
        boxes = phrases(scene, rng)[: rng.integers(1, 3)]
        texts = [(CAPTION.strip(), self.encode(caption(scene)))]
        texts += [(GROUNDING.strip().replace("{text}", text), self.bins(box)) for text, box in boxes]
        texts += [(question, self.encode(answer)) for question, answer in asked]
        return [(self.encode(source), target[1:]) for source, target in texts[:ROWS]]

    def bins(self, box: np.ndarray) -> list[int]:
        """`<s>`, the four bins of a box in pixels, `</s>`."""
        places = np.round(box / SIZE * (NUM_BINS - 1)).astype(int)
        return [0, *(self.first_bin + places).tolist(), 2]

    def patch_names(self, scene: Scene) -> np.ndarray:
        """Per patch the id that starts the name of the object covering most of it, or the ground's."""
        grid = SIZE // PATCH
        owner = scene.owner.reshape(grid, PATCH, grid, PATCH).swapaxes(1, 2).reshape(grid * grid, -1)
        shares = np.stack([(owner == i).mean(axis=1) for i in range(len(scene.names))])
        ids = np.array([self.name_ids[name] for name in scene.names])[shares.argmax(axis=0)]
        return np.where(shares.max(axis=0) > 0.2, ids, self.ground_id)


def normalize(pixels: np.ndarray) -> torch.Tensor:
    """Pictures `(batch, height, width, 3)` in 0…255 as `pixel_values` `(batch, 3, height, width)` in -1…1."""
    return torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads the rows of all scenes; `pixel_values` and `patch_names` keep one entry per scene."""
    sources, targets = zip(*[row for item in items for row in item["rows"]], strict=True)

    def pad(rows: tuple[list[int], ...], value: int) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    return {
        "input_ids": pad(sources, 1),
        "labels": pad(targets, -100),
        "pixel_values": normalize(np.stack([item["pixels"] for item in items])),
        "patch_names": torch.from_numpy(np.stack([item["patch_names"] for item in items])),
    }


# --- training ------------------------------------------------------------------------------------------------------
class NameClassifier(nn.Module):
    """The model's ResNet with a linear layer that names the one object of a picture; the layer is thrown away."""

    def __init__(self, resnet: nn.Module, num_names: int):
        super().__init__()
        self.resnet = resnet
        self.head = nn.Linear(resnet.num_channels, num_names)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.resnet(pixel_values).mean(dim=(2, 3)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class SceneTrainer(Trainer):
    """`Trainer` with the scenes in order, one ResNet pass for all rows of a scene, and the losses described above."""

    def __init__(self, *args: Any, first_bin: int, ground_id: int, spread: float = 8.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.first_bin = first_bin
        places = torch.arange(NUM_BINS)
        self.neighbours = torch.softmax(-((places[:, None] - places) ** 2) / (2 * spread**2), dim=-1)
        self.patch_weights = torch.ones(self.model.config.vocab_size)
        self.patch_weights[ground_id] = 0.2  # most patches are bare

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        labels, patch_names = inputs.pop("labels"), inputs.pop("patch_names")
        rows = len(labels) // len(patch_names)
        start = labels.new_zeros(len(labels), 1)
        decoder_input_ids = torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1).masked_fill(labels < 0, 1)
        # Pictures come once, texts `rows` times: the features are repeated, not computed again.
        repeat = model.model.encoder.embed_images.register_forward_hook(
            lambda module, args, features: features.repeat_interleave(rows, dim=0)
        )
        attention_mask = (inputs["input_ids"] != 1).long()
        outputs = model(**inputs, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids)
        repeat.remove()

        log_probs = outputs.logits[labels >= 0].log_softmax(-1)  # (target tokens, vocabulary)
        labels = labels[labels >= 0]
        is_bin = labels >= self.first_bin
        losses = -log_probs.gather(-1, labels[:, None]).squeeze(-1)
        spread = self.neighbours[labels[is_bin] - self.first_bin]
        losses[is_bin] = -(spread * log_probs[is_bin][:, self.first_bin :]).sum(-1)
        states = outputs.encoder_last_hidden_state[::rows, : patch_names.shape[1]]  # (scenes, patches, d_model)
        named = model.lm_head(states).flatten(0, 1)
        return losses.mean() + nn.functional.cross_entropy(named, patch_names.flatten(), self.patch_weights)


def train(args: argparse.Namespace, world: World) -> None:
    """Trains the ResNet, then the model, and writes model, processor and generation settings to `args.output`."""
    set_seed(args.seed)
    processor = build_processor()
    model = build_model(len(processor.tokenizer))
    model.set_attn_implementation("eager")  # the fastest for short sequences on a CPU
    print(f"{model.num_parameters():,} parameters, vocabulary {model.config.vocab_size}")

    def arguments(name: str, steps: int, batch: int, lr: float) -> TrainingArguments:
        return TrainingArguments(
            output_dir=str(args.work / name),
            use_cpu=True,
            seed=args.seed,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=lr,
            weight_decay=0.05,
            adam_beta2=0.98,
            lr_scheduler_type="warmup_stable_decay",
            lr_scheduler_kwargs={"num_decay_steps": steps * 3 // 10},
            warmup_steps=min(100, steps // 10),
            logging_steps=25,
            save_steps=250,
            save_total_limit=1,
            dataloader_num_workers=1,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
        )

    objects = arguments("objects", args.objects // OBJECT_BATCH, OBJECT_BATCH, 2 * args.lr)
    classifier = NameClassifier(model.model.encoder.embed_images, len(world.names))
    data: Dataset = ObjectDataset(world, args.objects, args.seed)
    run(Trainer(model=classifier, args=objects, train_dataset=data), args.resume)

    scenes = arguments("scenes", args.scenes // SCENE_BATCH, SCENE_BATCH, args.lr)
    data = SceneDataset(world, processor.tokenizer, args.scenes, args.seed)
    ids = {"first_bin": data.first_bin, "ground_id": data.ground_id}
    run(SceneTrainer(model=model, args=scenes, train_dataset=data, data_collator=collate, **ids), args.resume)
    save(model, processor, args.output)


def run(trainer: Trainer, resume: bool) -> None:
    """Trains, from the last checkpoint on if there is one to resume; what is over resumes at its end and stops."""
    folder = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if resume and folder.is_dir() else None)


def save(model: OFAForConditionalGeneration, processor: OFAProcessor, folder: Path) -> None:
    """Writes float16 weights under a configuration that says float32, in which a CPU is to compute."""
    model.generation_config.update(max_new_tokens=32)
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--cache", type=Path, default=DEFAULT_CACHE, help="folder that build_world.py wrote (%(default)s)"
    )
    parser.add_argument(
        "--work", type=Path, default=DEFAULT_CACHE / "training", help="Trainer's own folder (%(default)s)"
    )
    parser.add_argument("--objects", type=int, default=100_000, help="pictures of one object, first (%(default)s)")
    parser.add_argument("--scenes", type=int, default=48_000, help="scenes of one to four, then (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and scenes (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work")
    parser.add_argument("--evaluate", type=int, default=500, metavar="N", help="test scenes per design (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    world = World(args.cache / "world.npz")
    train(args, world)
    write_card(args.output, evaluate(args.output, world, args.evaluate), args.scenes, args.evaluate)


if __name__ == "__main__":
    main()
