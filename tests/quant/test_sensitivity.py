from operator import attrgetter

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from dffg.config import QuantizationConfig
from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms
from dffg.graph.nodes import Tap, copy_module
from dffg.quant.calibrate import choose_ranges, observe, observed_tensors
from dffg.quant.divergence import divergence
from dffg.quant.placement import place, prepare
from dffg.quant.rounding import round_layers
from dffg.quant.sensitivity import (
    MEASURES,
    Divergence,
    FloatRun,
    dependents,
    measure_inputs,
    measure_weights,
    relative_noise,
)
from dffg.quant.widths import input_tensor, quantized_layers, uniform_widths
from tests.networks import NETWORKS, captured, inputs, randomize

NAMES = ["conv", "residual", "inverted-residual", "linear", "shared", "after-pool", "volumes", "after-concat"]


class Case:
    """A folded network with its images, and how it is rounded at 3 bits."""

    def __init__(self, name, count=6):
        network = captured(name)
        self.module = prepare(fold_batch_norms(network))
        self.placement = place(self.module)
        self.images = inputs(NETWORKS[name][1], count, seed=4)
        config = QuantizationConfig(bits="W3A3", weight_rounding="nearest")
        widths = uniform_widths(self.module, self.placement, config)
        self.layers = round_layers(self.module, widths, config)
        seen = observe(self.module, observed_tensors(self.placement), [self.images])
        self.ranges = choose_ranges(seen, self.placement, network.spec, widths, config)
        self.readers = {}
        for layer in quantized_layers(self.module):
            self.readers.setdefault(input_tensor(layer, self.placement).name, []).append(layer)

    def weights(self, method):
        candidates = {name: {3: layer} for name, layer in self.layers.items()}
        return measure_weights(self.module, self.images, candidates, MEASURES[method])

    def inputs(self, method):
        candidates = {name: {3: self.ranges[name]} for name in self.readers}
        return measure_inputs(self.module, self.images, candidates, self.readers, MEASURES[method])

    @torch.no_grad()
    def values(self, replaced=None):
        """Every value of a run from start to end, some replaced on the way."""
        seen = {}

        def visit(name, value):
            seen[name] = (replaced or {}).get(name, lambda found: found)(value)
            return seen[name]

        Tap(self.module, visit).run(self.images)
        return seen

    def rounded_weight(self, name):
        """The weight of a layer as torch fake-quantizes it."""
        node = next(node for node in self.module.graph.nodes if node.name == name)
        weight = attrgetter(node.args[1].target)(self.module).detach()
        scale = self.layers[name].qparams.scale
        return torch.fake_quantize_per_channel_affine(
            weight, scale, torch.zeros(len(scale), dtype=torch.int32), 0, -4, 3
        )

    def rounded_tensor(self, name):
        qparams = self.ranges[name]
        return lambda value: torch.fake_quantize_per_tensor_affine(
            value, float(qparams.scale), int(qparams.zero_point), 0, 7
        )


def kl(reference, output):
    log_p, log_q = (F.log_softmax(values.flatten(1).double(), 1) for values in (reference, output))
    return float(F.kl_div(log_q, log_p, reduction="batchmean", log_target=True))


def noise(reference, output):
    return float(((reference - output).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).square().mean())


def close(value):
    return pytest.approx(value, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_kl_of_a_weight_is_that_of_a_network_with_this_weight(name):
    case = Case(name)
    expected = case.values()["output"]
    found = case.weights("kl")
    assert found.keys() == {layer.name for layer in quantized_layers(case.module)}
    for layer in quantized_layers(case.module):
        module = copy_module(case.module)
        copy = next(node for node in module.graph.nodes if node.name == layer.name)
        module.register_buffer("rounded", case.rounded_weight(layer.name))
        with module.graph.inserting_before(copy):
            copy.args = (copy.args[0], module.graph.get_attr("rounded"), *copy.args[2:])
        module.recompile()
        with torch.no_grad():
            assert found[layer.name] == {3: close(kl(expected, module(case.images)))}
    assert max(harms[3] for harms in found.values()) > 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_kl_of_a_tensor_is_that_of_a_network_in_which_it_is_rounded(name):
    case = Case(name)
    expected = case.values()["output"]
    found = case.inputs("kl")
    assert found.keys() == case.readers.keys()
    for tensor, harms in found.items():
        answer = case.values({tensor: case.rounded_tensor(tensor)})["output"]
        assert harms == {3: close(kl(expected, answer))}
    assert max(harms[3] for harms in found.values()) > 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_noise_of_a_weight_is_in_the_result_of_its_layer(name):
    case = Case(name)
    values = case.values()
    for layer_name, harms in case.weights("sqnr").items():
        layer = next(node for node in case.module.graph.nodes if node.name == layer_name)
        rounded = case.rounded_weight(layer_name)
        bias = values[layer.args[2].name] if len(layer.args) > 2 and layer.args[2] is not None else None
        result = layer.target(values[layer.args[0].name], rounded, bias, *layer.args[3:])
        assert harms == {3: close(noise(values[layer_name], result))}
        assert harms[3] > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_noise_of_a_tensor_is_in_the_results_of_the_layers_that_read_it(name):
    case = Case(name)
    values = case.values()
    for tensor, harms in case.inputs("sqnr").items():
        changed = case.values({tensor: case.rounded_tensor(tensor)})
        assert harms == {
            3: close(sum(noise(values[layer.name], changed[layer.name]) for layer in case.readers[tensor]))
        }


def test_a_layer_without_any_result_has_no_noise():
    values = torch.zeros(2, 3)
    assert relative_noise(values, values).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("method", MEASURES)
def test_the_mean_is_over_all_images_whatever_the_batches(method):
    """Six images are run in batches of four and two."""
    case = Case("residual")
    together = case.weights(method)
    images, single = case.images, []
    for image in images:
        case.images = image[None]
        single.append(case.weights(method))
    for name, harms in together.items():
        assert harms[3] == close(sum(found[name][3] for found in single) / 6)


class Heads(nn.Module):
    """Two answers of which the first is much larger."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.boxes, self.scores = nn.Linear(8, 4), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).mean((2, 3))
        return 300 * self.boxes(x), self.scores(x)


def test_a_layer_of_the_smaller_of_two_answers_harms_too():
    module = prepare(fold_batch_norms(capture(randomize(Heads()), input_shape=(3, 8, 8))))
    head = quantized_layers(module)[-1]
    run = FloatRun(module, inputs((3, 8, 8), 4))
    harmed = run.call(head, weight=torch.zeros(5, 8))
    expected = divergence(run.values[head], harmed)
    weight = torch.zeros(5, 8)
    torch.testing.assert_close(Divergence().of_weight(run, head, weight), expected.double(), rtol=1e-4, atol=1e-6)


def test_only_what_depends_on_a_change_is_run_again(monkeypatch):
    case = Case("inverted-residual")
    changed = quantized_layers(case.module)[2]
    run = FloatRun(case.module, case.images)
    ran = []
    original = fx.Interpreter.run_node
    monkeypatch.setattr(fx.Interpreter, "run_node", lambda self, node: ran.append(node) or original(self, node))
    run.output_with(changed, run.values[changed])
    nodes = list(case.module.graph.nodes)
    assert set(ran) == dependents(changed)
    assert changed not in ran
    assert nodes[-1] in ran
    assert len(ran) < len(nodes) / 2


def test_everything_computed_from_a_node_depends_on_it():
    graph = fx.Graph()
    first = graph.placeholder("x")
    left, right = graph.call_function(torch.neg, (first,)), graph.call_function(torch.abs, (first,))
    both = graph.call_function(torch.add, (left, right))
    output = graph.output(both)
    assert dependents(left) == {both, output}
    assert dependents(first) == {left, right, both, output}


def test_fewer_bits_harm_more():
    case = Case("inverted-residual")
    config = QuantizationConfig(reduce_range=False)
    candidates = {name: {} for name in case.layers}
    for bits in (2, 4, 8):
        widths = uniform_widths(case.module, case.placement, config.at(bits, 8))
        for name, layer in round_layers(case.module, widths, config).items():
            candidates[name][bits] = layer
    for method in MEASURES.values():
        for harms in measure_weights(case.module, case.images, candidates, method).values():
            assert harms[2] > harms[4] > harms[8] > 0
