import itertools
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dffg.config import Budget
from dffg.errors import InputError
from dffg.quant.allocation import LayerSize, Problem, allocate, frontier

PACKED = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
BUDGETS = ("size=0.5x", "size=1kB", "bops=0.5x", "bits=4")


def random_problem(seed, budget, layers=3, weight_bits=(2, 3, 4, 8), input_bits=(4, 8)):
    """Layers of random sizes, two of which read one tensor; sensitivities fall with the bits, most of the time."""
    rng = random.Random(seed)

    def table(names, bits):
        return {name: {width: 10 ** rng.uniform(-4, 1) * 4.0**-width for width in bits} for name in names}

    sizes = tuple(
        LayerSize(
            weight=f"w{index}",
            input=f"a{min(index, layers - 2)}",
            parameters=rng.randint(1, 500),
            macs=rng.randint(1, 5000),
        )
        for index in range(layers)
    )
    return Problem(
        layers=sizes,
        weights=table([size.weight for size in sizes], weight_bits),
        activations=table(dict.fromkeys(size.input for size in sizes), input_bits),
        budget=Budget.parse(budget),
    )


def cost_by_hand(problem, weights, inputs):
    """What the widths cost in the notation of the budget."""
    budget, layers = problem.budget, problem.layers
    if budget.kind == "size":
        spent = sum(int(np.ceil(layer.parameters * PACKED[weights[layer.weight]] / 8)) for layer in layers)
        return spent / sum(layer.parameters for layer in layers) if budget.relative else spent
    if budget.kind == "bits":
        return np.average([weights[layer.weight] for layer in layers], weights=[layer.parameters for layer in layers])
    spent = sum(layer.macs * weights[layer.weight] * inputs[layer.input] for layer in layers)
    return spent / sum(layer.macs * 64 for layer in layers)


def all_choices(problem):
    """Cost and sensitivity of every combination of widths."""
    tables = {("weights", name): table for name, table in problem.weights.items()}
    tables |= {("inputs", name): table for name, table in problem.activations.items()}
    for widths in itertools.product(*tables.values()):
        chosen = {"weights": {}, "inputs": {}}
        for (kind, name), bits in zip(tables, widths, strict=True):
            chosen[kind][name] = bits
        harm = sum(table[bits] for table, bits in zip(tables.values(), widths, strict=True))
        yield cost_by_hand(problem, **chosen), harm


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(BUDGETS), st.floats(0, 1))
def test_the_choice_is_the_best_of_all_combinations(seed, budget, place):
    problem = random_problem(seed, budget)
    choices = list(all_choices(problem))
    costs = [cost for cost, _ in choices]
    limit = min(costs) + place * (max(costs) - min(costs))
    found = allocate(problem, limit)
    assert found.cost == pytest.approx(cost_by_hand(problem, found.widths.weights, found.widths.activations))
    assert found.cost <= limit * (1 + 1e-9)
    best = min(harm for cost, harm in choices if cost <= limit * (1 + 1e-9))
    assert found.sensitivity == pytest.approx(best, rel=1e-5)


def test_sensitivity_is_that_of_the_widths():
    problem = random_problem(3, "bops=0.5x")
    found = allocate(problem, 0.3)
    harms = [problem.weights[name][bits] for name, bits in found.widths.weights.items()]
    harms += [problem.activations[name][bits] for name, bits in found.widths.activations.items()]
    assert len(harms) == 5
    assert found.sensitivity == pytest.approx(sum(harms))


@pytest.mark.parametrize("budget", BUDGETS)
def test_more_budget_never_harms_more(budget):
    problem = random_problem(7, budget, layers=12, weight_bits=(2, 3, 4, 5, 6, 8), input_bits=(4, 6, 8))
    low, high = (cost / problem.unit for cost in problem.bounds)
    harms = [allocate(problem, limit).sensitivity for limit in np.linspace(low, high, 15)]
    assert harms == sorted(harms, reverse=True)
    assert harms[-1] < harms[0]


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_whole_budget_leaves_the_least_sensitive_width_everywhere(budget):
    problem = random_problem(11, budget)
    found = allocate(problem, problem.bounds[1] / problem.unit)
    for chosen, table in ((found.widths.weights, problem.weights), (found.widths.activations, problem.activations)):
        assert chosen == {name: min(harms, key=harms.get) for name, harms in table.items()}


def test_a_size_counts_what_is_stored():
    """Three bits take the place of four, so that four are free; five take that of eight."""
    problem = Problem(
        layers=(LayerSize(weight="w", input="a", parameters=1001, macs=7),),
        weights={"w": {2: 5.0, 3: 2.0, 4: 1.0, 5: 0.5, 8: 0.1}},
        activations={"a": {8: 0.0}},
        budget=Budget.parse("size=1kB"),
    )
    costs = {
        limit: (allocate(problem, limit).widths.weights["w"], allocate(problem, limit).cost) for limit in (251, 501)
    }
    assert costs == {251: (2, 251), 501: (4, 501)}
    assert allocate(problem, 1000).widths.weights["w"] == 4
    assert allocate(problem, 1001).widths.weights["w"] == 8


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_smallest_possible_is_said_and_possible(budget):
    problem = random_problem(5, budget)
    smallest = min(cost for cost, _ in all_choices(problem))
    with pytest.raises(InputError, match="no widths fit the budget") as caught:
        allocate(problem, 0.99 * smallest)
    said = Budget.parse(str(caught.value).rpartition(" ")[2].rstrip("."))
    assert said.kind == problem.budget.kind
    assert smallest <= said.amount <= smallest + 1e-4 + 1e-9
    assert allocate(problem, said.amount).cost == pytest.approx(smallest)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_frontier_rises_in_cost_and_falls_in_sensitivity_and_nothing_dominates_it(budget):
    problem = random_problem(2, budget)
    points = frontier(problem)
    assert len(points) > 3
    costs, harms = [point.cost for point in points], [point.sensitivity for point in points]
    assert costs == sorted(set(costs))
    assert harms == sorted(set(harms), reverse=True)
    assert costs[0] == pytest.approx(min(cost for cost, _ in all_choices(problem)))
    for cost, harm in all_choices(problem):
        assert not any(cost < point.cost * (1 - 1e-9) and harm < point.sensitivity * (1 - 1e-5) for point in points)


def test_a_frontier_without_a_choice_is_one_point():
    assert len(frontier(random_problem(0, "bits=4", weight_bits=(4,), input_bits=(8,)))) == 1


def test_what_the_solver_prints_is_discarded_and_nothing_else():
    """HiGHS writes to the standard output of the process, past Python, on some problems; here it does so on all."""
    code = (
        "import ctypes; from tests.quant.test_allocation import *; from dffg.quant import allocation\n"
        "solve = allocation.optimize.milp\n"
        "allocation.optimize.milp = lambda *a, **k: ctypes.CDLL(None).puts(b'noise') and solve(*a, **k)\n"
        "print('before'); allocate(random_problem(0, 'bops=0.5x'), 0.4); print('after')"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=buffered)
    assert ended.stdout.split() == ["before", "after"]
