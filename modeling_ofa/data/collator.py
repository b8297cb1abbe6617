"""Raw rows of any tasks to one padded batch. The code is a core file, since pipelines need it beside the weights."""

from ..collator_ofa import DataCollatorForOFA, encoded_picture, target_of


__all__ = ["DataCollatorForOFA", "encoded_picture", "target_of"]
