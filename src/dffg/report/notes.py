"""Sentences of a report about what was decided."""

from __future__ import annotations

from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.export.packing import MOST_PACKED_BITS
from dffg.images import SyntheticSet
from dffg.machine.processor import adds_in_16_bits
from dffg.quant.decide import Decided
from dffg.quant.quantized import Quantized
from dffg.quant.widths import PAIR_BITS, REDUCED_BITS


def width_notes(quantized: Quantized, config: QuantizationConfig) -> tuple[str, ...]:
    """What fewer than 8 bits bring, and what they do not; on which processors 8 are too many."""
    notes = []
    widths, packed = {layer.weight_bits for layer in quantized.layers}, MOST_PACKED_BITS if config.rules.packs else 0
    if config.reduce_range and REDUCED_BITS in widths:
        widths -= {REDUCED_BITS}
        notes.append(
            "weights are kept within 7 bits, as x86 CPUs without VNNI need, which add products in 16 bits; a file for "
            "other CPUs can have 8, by --reduce-range false"
        )
    elif config.rules.adds_pairs and any(
        layer.weight_bits + layer.activation_bits > PAIR_BITS for layer in quantized.layers
    ):
        where = "this CPU" if adds_in_16_bits() else "x86 CPUs without VNNI"
        notes.append(f"products of 8 bits overflow on {where}: a file for it is made by --reduce-range true")
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
