"""Publishing on the Hub: what of a folder goes there, the card that goes with it, and the upload."""

from .card import Card, Measured
from .contents import KINDS, Contents, prepare
from .upload import upload


__all__ = ["KINDS", "Card", "Contents", "Measured", "prepare", "upload"]
