"""Sentences of a report about what was decided."""

from __future__ import annotations

from dffg.config import SynthesisConfig
from dffg.export.packing import MOST_PACKED_BITS
from dffg.images import SyntheticSet
from dffg.quant.decide import Decided
from dffg.quant.simulate import Quantized
from dffg.targets import Target


def width_notes(quantized: Quantized, target: Target) -> tuple[str, ...]:
    """What fewer than 8 bits bring, and what they do not."""
    notes = []
    widths, packed = {layer.weight_bits for layer in quantized.layers}, MOST_PACKED_BITS if target.packs else 0
    if any(bits <= packed for bits in widths):
        notes.append("weights of 4 bits and fewer make a smaller file; the runtime computes in int8 all the same")
    if any(packed < bits < 8 for bits in widths):
        which = f"{packed + 1} to 7" if packed else "fewer than 8"
        notes.append(f"weights of {which} bits are stored in 8: the file is neither smaller nor faster than at 8 bits")
    if any(layer.activation_bits < 8 for layer in quantized.layers):
        notes.append("activations of fewer than 8 bits are clipped and still 8 bits wide: this is not faster")
    return tuple(notes)


def equalization_notes(decided: Decided) -> tuple[str, ...]:
    """That channels were evened out, where they were."""
    if decided.equalized != "activations":
        return ()
    return ("the ranges of channels were evened out, which brings the answer nearer to the float network's",)


def memory_notes(made: SyntheticSet | None, asked: SynthesisConfig) -> tuple[str, ...]:
    """That images were made in smaller batches, where they were."""
    if made is None or made.config.batch_size == asked.batch_size:
        return ()
    size = made.config.batch_size
    return (f"images were made {size} at a time in place of {asked.batch_size}, which fits into memory",)
