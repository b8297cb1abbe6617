"""`Seq2SeqTrainer` where FSDP or DeepSpeed divides the model among processes."""

from typing import Any

import torch
from torch.distributed.fsdp import StateDictType
from transformers import PreTrainedModel, Seq2SeqTrainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..vision_ofa import PATCH_SIZE


class ShardingTrainer(Seq2SeqTrainer):
    """
    [`~transformers.Seq2SeqTrainer`], and what OFA needs where `accelerate` divides its weights among processes, by
    FSDP or by ZeRO-3 of DeepSpeed. Each process then has a part of every weight, and all wait for each other wherever
    one of them uses one. Without them it adds nothing.

    Raises:
        ValueError: The model leaves out layers at random, or FSDP is set up so that it cannot divide or resume OFA.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._is_divided = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        config = self.model.config
        if self._is_divided and (config.encoder_layerdrop or config.decoder_layerdrop):
            raise ValueError(
                "Processes that share the weights must run the same layers: set encoder_layerdrop and "
                "decoder_layerdrop to 0."
            )
        if not self.is_fsdp_enabled:
            return
        if not self.accelerator.is_fsdp2:
            raise ValueError("The first version of FSDP is not supported: set fsdp_version: 2.")
        # By this `generate` knows that all processes must take as many steps; accelerate does not say it.
        self.model._is_fsdp_managed_module = True
        if config.tie_word_embeddings:
            if self.accelerator.state.fsdp_plugin.state_dict_type == StateDictType.FULL_STATE_DICT:
                raise ValueError(
                    "torch cannot go on from whole checkpoints of a model with tied weights: set FSDP's "
                    "state_dict_type to SHARDED_STATE_DICT. The model at the end is saved whole in any case."
                )
            # One module for encoder and decoder: a weight of input and output can be divided, one of three cannot.
            self.model.set_input_embeddings(self.model.get_input_embeddings())

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        found = optimizer or self.optimizer
        if self.is_deepspeed_enabled and not hasattr(found.optimizer, "defaults"):
            found.optimizer.defaults = {"lr": self.args.learning_rate}  # which polynomial schedules read
        return super().create_scheduler(num_training_steps, optimizer)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """
        Gives a batch without pictures some that no row looks at, where other processes have pictures.

        Raises:
            ValueError: Only some processes have second pictures, or rows whose targets are image codes.
        """
        inputs = super()._prepare_inputs(inputs)
        if not self._is_divided:
            return inputs
        codes = inputs.get("code_masks", torch.zeros(1, dtype=torch.bool))
        used = ["pixel_values" in inputs, "pixel_values_2" in inputs, bool(codes.any()), bool(codes.all())]
        of_all = self.accelerator.gather(torch.tensor([used], dtype=torch.int, device=self.args.device))
        differ = (of_all != of_all[0]).any(dim=0).tolist()
        if any(differ[1:]):
            raise ValueError(
                "Processes that share the weights need batches that are alike, but only some have second pictures or "
                "targets of image codes: train on one such task at a time, or with whole weights on each process."
            )
        if differ[0] and not used[0]:
            number = inputs["input_ids"].shape[0]
            pixels = torch.zeros(number, 3, PATCH_SIZE, PATCH_SIZE, device=self.args.device)
            masks = torch.zeros(number, dtype=torch.bool, device=self.args.device)
            inputs = {**inputs, "pixel_values": pixels, "patch_masks": masks}
        return inputs

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Saves the model for `from_pretrained`, also where checkpoints are written in pieces. Such a checkpoint gets
        what it lacks beside weights, so that `accelerate merge-weights` completes it.
        """
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is None or plugin.state_dict_type != StateDictType.SHARDED_STATE_DICT:
            super().save_model(output_dir, _internal_call)
        elif not _internal_call or output_dir is None:
            plugin.set_state_dict_type(StateDictType.FULL_STATE_DICT)
            super().save_model(output_dir, _internal_call)
            plugin.set_state_dict_type(StateDictType.SHARDED_STATE_DICT)
        elif self.args.should_save and isinstance(self.model, PreTrainedModel):
            self.model.config.save_pretrained(output_dir)
            self.model.generation_config.save_pretrained(output_dir)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if state_dict is not None:
            # Gathered from pieces, a tied weight is there under each of its names.
            tied = getattr(self.model, "all_tied_weights_keys", {})
            state_dict = {name: weight for name, weight in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            self._complete_optimizer()
        super()._save_optimizer_and_scheduler(output_dir)

    def _complete_optimizer(self) -> None:
        """
        Gives weights that had no gradient yet, such as those of image codes, the state that an optimizer begins with.
        Without it no checkpoint of pieces can be read.
        """
        optimizer = self.optimizer.optimizer
        groups = optimizer.param_groups
        new = [weight for group in groups for weight in group["params"] if weight not in optimizer.state]
        rates = [group["lr"] for group in groups]
        for weight in new:
            weight.grad = torch.zeros_like(weight)
        for group in groups:
            group["lr"] = 0.0
        optimizer.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        for weight in new:
            weight.grad = None
            if "step" in optimizer.state[weight]:
                optimizer.state[weight]["step"].zero_()


__all__ = ["ShardingTrainer"]
