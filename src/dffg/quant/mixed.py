"""Widths of their own for every layer: what narrow layers harm, and which choice fits the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from dffg.config import Budget, QuantizationConfig
from dffg.graph.nodes import weight_of
from dffg.images import evenly
from dffg.quant.affine import QParams
from dffg.quant.allocation import Allocation, LayerSize, Problem, Sensitivities, allocate, frontier, require_possible
from dffg.quant.calibrate import Seen, choose_ranges
from dffg.quant.parameters import LayerParameters
from dffg.quant.placement import Placement
from dffg.quant.rounding import round_layers
from dffg.quant.sensitivity import MEASURES, Candidates, measure_inputs, measure_weights
from dffg.quant.widths import BitWidths, input_tensor, quantized_layers, uniform_widths


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """Widths of everything, the choice behind them, and the best choices within other budgets of the same kind."""

    budget: Budget
    widths: BitWidths
    chosen: Allocation
    frontier: tuple[Allocation, ...]


def choose_widths(seen: Seen, config: QuantizationConfig) -> MixedPrecision:
    """The widths that fit `config.budget` with the least sensitivity."""
    problem = pose(seen, config)
    chosen = allocate(problem, problem.budget.amount)
    widths = complete_widths(chosen.widths, seen, config)
    return MixedPrecision(budget=problem.budget, widths=widths, chosen=chosen, frontier=frontier(problem))


def complete_widths(chosen: BitWidths, seen: Seen, config: QuantizationConfig) -> BitWidths:
    """Chosen widths, and those of everything that no budget chooses."""
    fixed = fixed_widths(seen.float_module, seen.placement, config)
    return BitWidths(weights=chosen.weights, activations={**fixed.activations, **chosen.activations})


def pose(seen: Seen, config: QuantizationConfig) -> Problem:
    """Measure every candidate, on an even choice of the images.

    Inputs of layers are chosen with the weights where the budget is bit operations, and have `config.activation_bits`
    for others. Candidates are rounded and have ranges as in calibration; biases stay.
    """
    module, method = seen.float_module, MEASURES[config.sensitivity]
    weights, inputs = _weight_candidates(seen, config), _input_candidates(seen, config)
    problem = Problem(
        layers=layer_sizes(module, seen.placement),
        weights=_unmeasured(weights),
        activations=_unmeasured(inputs),
        budget=Budget.parse(str(config.budget)),
    )
    # Before the minutes that measuring can take.
    require_possible(problem, problem.budget.amount)
    chosen = evenly_chosen(torch.cat(list(seen.images)), config.sensitivity_images)
    problem = replace(problem, weights=measure_weights(module, chosen, weights, method))
    if config.budget_kind != "bops":
        return problem
    return replace(problem, activations=measure_inputs(module, chosen, inputs, _readers(seen), method))


def _unmeasured(candidates: Candidates[Any]) -> Sensitivities:
    return {name: dict.fromkeys(widths, 0.0) for name, widths in candidates.items()}


def fixed_widths(module: fx.GraphModule, placement: Placement, config: QuantizationConfig) -> BitWidths:
    """Widths where nothing is chosen."""
    return uniform_widths(module, placement, config.at(config.candidates[-1], config.input_bits))


def layer_sizes(module: fx.GraphModule, placement: Placement) -> tuple[LayerSize, ...]:
    """Every quantized layer with its weights and its MACs: each weight is used once per position of the result."""
    return tuple(_layer_size(module, layer, placement) for layer in quantized_layers(module))


def _layer_size(module: fx.GraphModule, layer: fx.Node, placement: Placement) -> LayerSize:
    weight = weight_of(module, layer)
    positions = math.prod(layer.meta["val"].shape[1:]) // len(weight)
    return LayerSize(
        weight=layer.name,
        input=input_tensor(layer, placement).name,
        parameters=weight.numel(),
        macs=weight.numel() * positions,
    )


def evenly_chosen(images: Tensor, count: int) -> Tensor:
    """At most `count` of the images, from all parts of the stream."""
    return images[evenly(len(images), count)]


def _readers(seen: Seen) -> dict[str, list[fx.Node]]:
    """The layers by the tensor whose range their input has."""
    readers: dict[str, list[fx.Node]] = {}
    for layer in quantized_layers(seen.float_module):
        readers.setdefault(input_tensor(layer, seen.placement).name, []).append(layer)
    return readers


def _weight_candidates(seen: Seen, config: QuantizationConfig) -> dict[str, dict[int, LayerParameters]]:
    found: dict[str, dict[int, LayerParameters]] = {}
    for uniform in _uniform(config):
        widths = uniform_widths(seen.float_module, seen.placement, uniform)
        for name, layer in round_layers(seen.float_module, widths, uniform).items():
            found.setdefault(name, {})[layer.qparams.bits] = layer
    return found


def _input_candidates(seen: Seen, config: QuantizationConfig) -> dict[str, dict[int, QParams]]:
    """Ranges of the inputs of layers at every width they may have: one, unless the budget is bit operations."""
    module, placement, inputs = seen.float_module, seen.placement, _readers(seen)
    possible = [uniform_widths(module, placement, uniform) for uniform in _uniform(config)]
    found: dict[str, dict[int, QParams]] = {}
    for widths in possible if config.budget_kind == "bops" else [fixed_widths(module, placement, config)]:
        for name, qparams in choose_ranges(seen.histograms, placement, seen.spec, widths, config).items():
            if name in inputs:
                found.setdefault(name, {})[qparams.bits] = qparams
    return found


def _uniform(config: QuantizationConfig) -> list[QuantizationConfig]:
    """One configuration for each candidate; where an outer layer has a width that is given, it is that in all."""
    return [config.at(bits, bits) for bits in config.candidates]
