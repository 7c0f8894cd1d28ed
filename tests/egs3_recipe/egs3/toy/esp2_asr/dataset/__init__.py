"""A recipe's data, as ESPnet3's recipes have it."""

from egs3.toy.esp2_asr.dataset.dataset import Words as Dataset

__all__ = ["Dataset"]
