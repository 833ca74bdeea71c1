"""Decide everything about a quantized network: fold, equalize, widths, ranges, integers and biases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from dffg.config import QuantizationConfig
from dffg.errors import InputError
from dffg.graph.captured import Captured
from dffg.graph.ends import columns
from dffg.graph.fold import fold_with_records
from dffg.machine.memory import reused_memory
from dffg.quant.affine import QParams
from dffg.quant.bias import correct_biases, expected_errors, measured_errors
from dffg.quant.calibrate import Seen, choose_ranges, observe, observed_tensors
from dffg.quant.copies import with_narrow_copies
from dffg.quant.divergence import divergence
from dffg.quant.equalize import absorb_biases, equalize_weights, rescale_moments
from dffg.quant.equalize_activations import equalize_activations
from dffg.quant.in_float import float_operations
from dffg.quant.mixed import MixedPrecision, choose_widths
from dffg.quant.moments import Moments, batch_norm_moments, propagate
from dffg.quant.parameters import Parameters
from dffg.quant.placement import place, prepare
from dffg.quant.quantized import Quantized, insert
from dffg.quant.ranges import SOUGHT
from dffg.quant.rounding import round_layers
from dffg.quant.widths import BitWidths, uniform_widths, with_known_range

# Operations that are named where none can be quantized.
_MOST_SHOWN = 3
_TRIAL_IMAGES = 32
# Less than this share of the divergence is no accident of 32 images.
_CLEARLY = 0.75


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A folded float network and what was decided about it, before it is written into a graph.

    equalized: what was evened out, where the configuration left the choice.
    """

    float_module: fx.GraphModule
    parameters: Parameters
    mixed: MixedPrecision | None
    equalized: str

    def insert(self) -> Quantized:
        """The quantized graph."""
        return replace(insert(self.float_module, self.parameters), mixed=self.mixed)


def simulate(captured: Captured, images: Iterable[Tensor], config: QuantizationConfig | None = None) -> Quantized:
    """Quantize with `images` (batches of network inputs), without learning; see `decide`."""
    return decide(captured, images, config or QuantizationConfig()).insert()


@reused_memory()
def decide(captured: Captured, images: Iterable[Tensor], config: QuantizationConfig) -> Decided:
    """Fold, equalize, choose widths and ranges with `images` (batches of network inputs), round and correct the biases.

    The images are read once, at 8 bits; most of what else can be asked for keeps them in memory.
    """
    config = with_known_range(config)
    if config.is_mixed or config.bias_correction == "empirical":
        images = list(images)
    if config.equalize == "auto":
        images = list(images)
        config = replace(config, equalize=choose_equalization(captured, images, config) if images else "none")
    seen = look(captured, images, config)
    mixed = choose_widths(seen, config) if config.is_mixed else None
    widths = mixed.widths if mixed else uniform_widths(seen.float_module, seen.placement, config)
    return Decided(
        float_module=seen.float_module,
        parameters=settle(seen, widths, config),
        mixed=mixed,
        equalized=str(config.equalize),
    )


def look(captured: Captured, images: Iterable[Tensor], config: QuantizationConfig) -> Seen:
    """Fold, equalize and observe every tensor that will be quantized."""
    float_module, moments = prepare_float(captured, config)
    placement = place(float_module, config.rules, propagate(float_module, moments).keys())
    if not placement.source:
        reasons = float_operations(float_module, placement, config.rules)
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:_MOST_SHOWN])
        raise InputError(f"nothing of this network can be quantized for {config.target} ({shown}).")
    return Seen(
        float_module=float_module,
        placement=placement,
        moments=moments,
        histograms=observe(
            float_module, observed_tensors(placement), images, exact=config.activation_ranges not in SOUGHT
        ),
        images=images,
        spec=captured.spec,
    )


def settle(seen: Seen, widths: BitWidths, config: QuantizationConfig) -> Parameters:
    """Ranges, integers and biases at these widths."""
    parameters = Parameters(
        activations=choose_ranges(seen.histograms, seen.placement, seen.spec, widths, config),
        layers=round_layers(seen.float_module, widths, config),
        target=config.rules,
    )
    if config.bias_correction == "analytic":
        return correct_biases(parameters, expected_errors(seen.float_module, parameters, seen.moments))
    if config.bias_correction == "empirical":
        return correct_biases(parameters, measured_errors(seen.float_module, parameters, seen.images))
    return parameters


def with_ranges_from(
    captured: Captured, decided: Decided, images: Iterable[Tensor], config: QuantizationConfig
) -> Decided:
    """The same network and integers with the ranges that other images give."""
    widths = decided.mixed.widths if decided.mixed else None
    ranges = ranges_from(captured, images, replace(config, equalize=decided.equalized), widths)
    return replace(decided, parameters=replace(decided.parameters, activations=ranges))


def ranges_from(
    captured: Captured, images: Iterable[Tensor], config: QuantizationConfig, widths: BitWidths | None = None
) -> dict[str, QParams]:
    """Ranges of all activations and nothing else, at these widths or the one that is configured for all."""
    seen = look(captured, images, config)
    widths = widths or uniform_widths(seen.float_module, seen.placement, config)
    return choose_ranges(seen.histograms, seen.placement, seen.spec, widths, config)


def choose_equalization(captured: Captured, images: Sequence[Tensor], config: QuantizationConfig) -> str:
    """Whether it helps to even out the ranges of activations: it must bring the answer clearly nearer to float's.

    Weights have 8 bits for that, since those of few bits are still to be learned. Normal values are assumed of what
    ReLU6 clips, which the images show to be right (MobileNetV2) or wrong (EfficientNet-Lite0).
    """
    reference, _ = prepare_float(captured, replace(config, equalize="none"))
    chosen = torch.cat(list(images))[:_TRIAL_IMAGES]
    apart, trial = {}, replace(config.at(8, config.input_bits), weight_rounding="nearest", bias_correction="none")
    for choice in ("none", "activations"):
        module = simulate(captured, torch.split(chosen, len(images[0])), replace(trial, equalize=choice)).module
        with torch.no_grad():
            apart[choice] = float(divergence(reference(chosen), module(chosen), columns(reference).values()).mean())
    return "activations" if apart["activations"] < _CLEARLY * apart["none"] else "none"


def prepare_float(captured: Captured, config: QuantizationConfig) -> tuple[fx.GraphModule, dict[str, Moments]]:
    """The folded float network that is quantized, and what BatchNorm says of its layers' results."""
    folded, records = fold_with_records(captured)
    module, moments = prepare(folded), batch_norm_moments(records)
    if config.equalize == "activations":
        module, scales = equalize_activations(module, moments)
        moments = rescale_moments(moments, scales)
    if config.equalize == "weights":
        module, scales = equalize_weights(module)
        moments = rescale_moments(moments, scales)
    if config.absorb_biases:
        module, moments = absorb_biases(module, moments)
    return with_narrow_copies(module, config), moments
