"""`OFAImageProcessor`: the torchvision backend where torchvision is installed, and otherwise the Pillow one.

The Pillow backend gives the official pixels. torchvision's bicubic filter rounds differently (by one or two levels of
256), but resizes batches of tensors on their own device.
"""

from typing import TYPE_CHECKING, Any

from transformers.image_utils import ChannelDimension, ImageInput
from transformers.utils import is_torchvision_available

from .image_processing_pil_ofa import OFAImageProcessorPil, PictureInput


if is_torchvision_available() and not TYPE_CHECKING:
    import torch
    from transformers.image_processing_backends import TorchvisionBackend

    class OFAImageProcessor(PictureInput, TorchvisionBackend):
        """OFA's image processor on torchvision; see [`OFAImageProcessorPil`] for what it does and takes."""

        def process_image(
            self,
            image: ImageInput,
            do_convert_rgb: bool | None = None,
            input_data_format: str | ChannelDimension | None = None,
            device: "torch.device | str | None" = None,
            do_rescale: bool | None = True,
            **kwargs: Any,
        ) -> "torch.Tensor":
            """Gives the pixels of one image before resizing, a tensor of shape `(channels, height, width)`."""
            if device is None and isinstance(image, torch.Tensor):
                device = image.device
            pixels = self.to_pixels(image, do_convert_rgb, do_rescale, input_data_format)
            return torch.from_numpy(pixels.copy()).to(device)

else:
    OFAImageProcessor = OFAImageProcessorPil


__all__ = ["OFAImageProcessor"]
