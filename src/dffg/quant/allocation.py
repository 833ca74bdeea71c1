"""Which widths fit a budget with the least sensitivity: exactly, as an integer program."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from dffg.config import Budget
from dffg.errors import InputError
from dffg.quant.widths import BitWidths, stored_bits

Sensitivities = dict[str, dict[int, float]]
# HiGHS has absolute tolerances of 1e-6: the sum of all sensitivities and the budget are scaled far above.
_OBJECTIVE_SCALE, _BUDGET_SCALE = 1e6, 1e4
_FRONTIER_POINTS = 12
_STDOUT = 1


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """A layer by the names of its weight and its input, with its weights and its multiplications for one image."""

    weight: str
    input: str
    parameters: int
    macs: int


Cost = Callable[[LayerSize, int, int], int]


def stored_bytes(layer: LayerSize, weight_bits: int, activation_bits: int) -> int:
    """Bytes of the weight in a file, which has no type of 3, 5, 6 or 7 bits."""
    return math.ceil(layer.parameters * stored_bits(weight_bits) / 8)


def bit_operations(layer: LayerSize, weight_bits: int, activation_bits: int) -> int:
    """MACs * weight_bits * activation_bits."""
    return layer.macs * weight_bits * activation_bits


def weight_bits_total(layer: LayerSize, weight_bits: int, activation_bits: int) -> int:
    """Bits of the weight at its nominal width."""
    return layer.parameters * weight_bits


COSTS: dict[str, Cost] = {"size": stored_bytes, "bops": bit_operations, "bits": weight_bits_total}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What can be chosen, what it harms and what it costs.

    weights, activations: sensitivity by name and by candidate width; activations are the inputs of layers. budget: what
    kind of cost counts, and in which unit.
    """

    layers: tuple[LayerSize, ...]
    weights: Sensitivities
    activations: Sensitivities
    budget: Budget

    @property
    def cost(self) -> Cost:
        """Of one layer."""
        return COSTS[self.budget.kind]

    @property
    def unit(self) -> float:
        """Cost of 1 in the notation of the budget: W8A8 for a share, a byte for bytes, all weights for bits of one."""
        if self.budget.kind == "bits":
            return sum(layer.parameters for layer in self.layers)
        return sum(self.cost(layer, 8, 8) for layer in self.layers) if self.budget.relative else 1.0

    @property
    def bounds(self) -> tuple[int, int]:
        """Cost of the narrowest and of the widest candidates."""
        return self._cost_at(min), self._cost_at(max)

    def _cost_at(self, end: Callable[[Iterable[int]], int]) -> int:
        weights, activations = self.weights, self.activations
        return sum(self.cost(layer, end(weights[layer.weight]), end(activations[layer.input])) for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Chosen widths, of weights and of inputs of layers; their cost in the unit of the budget; their sensitivity."""

    cost: float
    sensitivity: float
    widths: BitWidths


def allocate(problem: Problem, limit: float) -> Allocation:
    """The widths with the least sum of sensitivities whose cost is at most `limit`, in the unit of the problem.

        min  sum_i sum_k x_ik Omega_i(k)    s.t.  sum_k x_ik = 1,  sum_l cost_l(weight_bits, activation_bits) <= limit

    x is 0 or 1. A layer's cost depends on both its widths, which is a product of two choices: it is made linear by a
    variable z_jk for every pair of widths with sum_k z_jk = x_j (weight) and sum_j z_jk = x_k (input), which is 1 for
    the chosen pair and 0 for the others. Solved to proven optimality by HiGHS.

    The objective is that of ZeroQ (Cai et al., CVPR 2020), which assumes that the harm of layers adds up. It walks
    along a Pareto frontier of sizes; here the optimum is exact, and other costs than size are possible.

    Raises InputError where no widths fit, with the smallest cost that does.
    """
    require_possible(problem, limit)
    program = _Program(problem)
    with _silent_solver():
        solved = optimize.milp(
            program.objective,
            integrality=1,
            bounds=(0, 1),
            constraints=program.constraints(limit * problem.unit),
            options={"mip_rel_gap": 0.0},
        )
    assert solved.x is not None, solved.message
    return program.read(solved.x)


def require_possible(problem: Problem, limit: float) -> None:
    """Raise InputError where no widths fit, whatever their sensitivities."""
    smallest = problem.bounds[0] / problem.unit
    if limit < smallest:
        least = replace(problem.budget, amount=_rounded_up(smallest))
        raise InputError(
            f"no widths fit the budget {replace(problem.budget, amount=limit)}; the smallest possible is {least}."
        )


def frontier(problem: Problem) -> tuple[Allocation, ...]:
    """Optimal allocations from the narrowest to the widest candidates: cost rises, sensitivity falls.

    The limits are spaced evenly on a logarithmic axis. What costs more and is not better is left out.
    """
    low, high = problem.bounds
    found: list[Allocation] = []
    for limit in np.geomspace(low, high, _FRONTIER_POINTS)[: None if high > low else 1]:
        # The first limit is the smallest cost itself, which a rounding error must not put out of reach.
        candidate = allocate(problem, max(float(limit), low) / problem.unit)
        if not found or candidate.sensitivity < found[-1].sensitivity:
            found.append(candidate)
    return tuple(found)


def _rounded_up(value: float) -> float:
    """To four digits behind the point: what is said to be possible is."""
    return math.ceil(value * 1e4) / 1e4


@contextmanager
def _silent_solver() -> Iterator[None]:
    """Discard what C code prints: HiGHS has a line that no option turns off, and it would stand within our JSON.

    Known as jump-dev/HiGHS.jl#312. The text may wait in a buffer of C until it is flushed.
    """
    kept = os.dup(_STDOUT)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), _STDOUT)
    try:
        yield
    finally:
        ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)
        os.dup2(kept, _STDOUT)
        os.close(kept)


class _Program:
    """The integer program: one column per choice of a width, then one per pair of widths of a layer."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        choices = [("weights", problem.weights), ("activations", problem.activations)]
        keys = [(kind, name, bits) for kind, table in choices for name, widths in table.items() for bits in widths]
        self._column = {key: index for index, key in enumerate(keys)}
        self._pairs = [
            (layer, weight_bits, activation_bits)
            for layer in problem.layers
            for weight_bits in problem.weights[layer.weight]
            for activation_bits in problem.activations[layer.input]
        ]
        harms = [widths[bits] for _, table in choices for widths in table.values() for bits in widths]
        scale = _OBJECTIVE_SCALE / max(sum(harms), 1e-300)
        self.objective = np.array(harms + [0.0] * len(self._pairs)) * scale

    def constraints(self, limit: float) -> list[optimize.LinearConstraint]:
        """One width each; pairs agree with the choices; the cost stays below the limit."""
        sums = [(row, 1.0) for row in self._one_width_each()] + [(row, 0.0) for row in self._pairs_agree()]
        equal = np.array([value for _, value in sums])
        scale, first = _BUDGET_SCALE / limit, len(self._column)
        costs = {first + index: self._problem.cost(*pair) * scale for index, pair in enumerate(self._pairs)}
        return [
            optimize.LinearConstraint(self._matrix([row for row, _ in sums]), equal, equal),
            optimize.LinearConstraint(self._matrix([costs]), -np.inf, _BUDGET_SCALE),
        ]

    def read(self, solution: NDArray[np.float64]) -> Allocation:
        """The widths a solution stands for."""
        chosen: dict[str, dict[str, int]] = {"weights": {}, "activations": {}}
        for (kind, name, bits), column in self._column.items():
            if solution[column] > 0.5:
                chosen[kind][name] = bits
        problem, widths = self._problem, BitWidths(**chosen)
        spent = sum(
            problem.cost(layer, widths.weights[layer.weight], widths.activations[layer.input])
            for layer in problem.layers
        )
        return Allocation(
            cost=spent / problem.unit,
            sensitivity=sum(problem.weights[name][bits] for name, bits in widths.weights.items())
            + sum(problem.activations[name][bits] for name, bits in widths.activations.items()),
            widths=widths,
        )

    def _one_width_each(self) -> Iterator[dict[int, float]]:
        rows: dict[tuple[str, str], dict[int, float]] = {}
        for (kind, name, _), column in self._column.items():
            rows.setdefault((kind, name), {})[column] = 1.0
        yield from rows.values()

    def _pairs_agree(self) -> Iterator[dict[int, float]]:
        """Pairs of a layer with one width of its weight sum up to the choice of that width; the same for its input."""
        rows: dict[tuple[str, str, int], dict[int, float]] = {}
        for index, (layer, weight_bits, activation_bits) in enumerate(self._pairs):
            for key in (("weights", layer.weight, weight_bits), ("activations", layer.input, activation_bits)):
                row = rows.setdefault((layer.weight, *key[::2]), {self._column[key]: -1.0})
                row[len(self._column) + index] = 1.0
        yield from rows.values()

    def _matrix(self, rows: list[dict[int, float]]) -> sparse.csr_array:
        entries = [(row, column, value) for row, entry in enumerate(rows) for column, value in entry.items()]
        row, column, value = zip(*entries)
        return sparse.csr_array((value, (row, column)), shape=(len(rows), len(self.objective)))
