import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

from dffg.errors import CaptureError, InputError, StatisticsError
from dffg.graph.captured import capture, program_input_shapes
from dffg.graph.nodes import LINEAR, calls, is_stored, layer_name, weight_of
from dffg.machine.device import channels_last
from dffg.spec import ImageSpec
from tests.networks import NETWORKS, captured, inputs, network, randomize, small_conv

SPEC = ImageSpec(shape=(3, 8, 8))


def export(model, shape=(3, 8, 8), dynamic=True):
    shapes = ({0: Dim.DYNAMIC},) if dynamic else None
    return torch.export.export(model.eval(), (torch.zeros(2, *shape),), dynamic_shapes=shapes)


def with_norm(forward):
    """A network with one BatchNorm and a forward of its own."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return forward(self, x)

    return randomize(Network())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_graph_gives_the_answer_of_the_model_for_any_batch(name, batch):
    model, shape = network(name)
    x = inputs(shape, batch)
    assert torch.allclose(captured(name).module(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_batch_norm_is_found_in_order_with_its_name(name):
    assert tuple(norm.name for norm in captured(name).batch_norms) == NETWORKS[name][2]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "functional"])
def test_a_batch_norm_carries_what_its_module_remembers(name):
    model, _ = network(name)
    modules = dict(model.named_modules())
    for norm in captured(name).batch_norms:
        module = modules[norm.name]
        assert torch.equal(norm.running_mean, module.running_mean)
        assert torch.equal(norm.running_var, module.running_var)
        assert torch.equal(norm.weight, module.weight)
        assert torch.equal(norm.bias, module.bias)
        assert norm.eps == module.eps


def test_a_functional_batch_norm_is_found_without_an_affine_part():
    (norm,) = captured("functional").batch_norms
    model, _ = network("functional")
    assert torch.equal(norm.running_mean, model.seen_mean)
    assert torch.equal(norm.running_var, model.seen_var)
    assert (norm.weight, norm.bias, norm.eps) == (None, None, 1e-3)


class FrozenBatchNorm2d(nn.Module):
    """As in torchvision, detectron2 and DETR: statistics and affine part are buffers."""

    def __init__(self, norm):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self.eps = norm.eps

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


def instance_norm(norm):
    """InstanceNorm that keeps statistics."""
    other = nn.InstanceNorm2d(norm.num_features, affine=True, track_running_stats=True, eps=norm.eps)
    other.load_state_dict(norm.state_dict())
    return other


@pytest.mark.parametrize("change", [FrozenBatchNorm2d, instance_norm])
def test_what_computes_as_batch_norm_does_remembers_as_well(change):
    plain = randomize(small_conv())
    expected = capture(copy.deepcopy(plain), input_shape=(3, 8, 8))
    for index, part in enumerate(plain):
        if isinstance(part, nn.BatchNorm2d):
            plain[index] = change(part)
    before = [type(part) for part in plain]
    found = capture(plain.eval(), input_shape=(3, 8, 8))
    assert [type(part) for part in plain] == before
    for one, other in zip(found.batch_norms, expected.batch_norms, strict=True):
        assert (one.name, one.eps) == (other.name, other.eps)
        assert torch.equal(one.running_mean, other.running_mean)
        assert torch.equal(one.running_var, other.running_var)
    torch.testing.assert_close(found.module(inputs((3, 8, 8))), plain(inputs((3, 8, 8))), rtol=1e-4, atol=1e-5)


def test_the_callers_model_is_not_touched():
    model = randomize(small_conv()).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    capture(model, spec=SPEC)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is None for p in model.parameters())


def test_the_capture_does_not_change_with_the_callers_model():
    model = randomize(small_conv())
    made, x = capture(model, spec=SPEC), inputs((3, 8, 8))
    expected = model(x).detach()
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].running_mean.fill_(9)
    assert torch.allclose(made.module(x), expected, atol=1e-6)


def test_train_mode_is_captured_as_eval_mode_and_noted():
    model, x = randomize(small_conv()), inputs((3, 8, 8))
    expected = model(x)
    made = capture(model.train(), spec=SPEC)
    assert "train mode" in " ".join(made.notes)
    assert torch.allclose(made.module(x), expected, atol=1e-6)


def test_a_complete_description_in_eval_mode_needs_no_note():
    made = captured("conv")
    assert (made.notes, made.name, made.spec) == ((), "Sequential", SPEC)
    assert capture(randomize(small_conv()), spec=SPEC, name="mine").name == "mine"


def test_the_shape_comes_from_an_example_and_the_rest_is_assumed_aloud():
    for arguments in ({"example_input": torch.zeros(1, 3, 8, 8)}, {"input_shape": [3, 8, 8]}):
        made = capture(randomize(small_conv()), **arguments)
        assert (made.spec.shape, made.spec.bounds, made.spec.mean) == ((3, 8, 8), (0.0, 1.0), (0.0,))
        assert "assuming pixels in [0, 1]" in made.notes[0]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_an_example_of_any_batch_leaves_the_batch_free(count):
    made = capture(randomize(small_conv()), torch.rand(count, 3, 8, 8))
    assert made.module(torch.rand(4, 3, 8, 8)).shape == (4, 5)


def test_nothing_of_the_graph_changes_its_arguments_or_asks_for_gradients():
    made, x = captured("residual-inplace"), inputs((3, 8, 8))
    before = x.clone()
    made.module(x)
    assert torch.equal(x, before)
    assert not any(p.requires_grad for p in made.module.parameters())
    targets = [str(node.target) for node in made.module.graph.nodes if node.op == "call_function"]
    assert not any("_." in target or "dropout" in target or "copy" in target for target in targets)


def test_dropout_is_gone():
    targets = [str(node.target) for node in captured("inverted-residual").module.graph.nodes]
    assert not any("dropout" in target for target in targets)


@pytest.mark.parametrize(
    ("drop", "name"),
    [(F.dropout, "dropout"), (F.dropout2d, "feature_dropout"), (partial(F.dropout, inplace=True), "dropout_")],
)
def test_active_dropout_is_named(drop, name):
    with pytest.raises(CaptureError, match=rf"dropout is active \({name}\).*training=self\.training"):
        capture(with_norm(lambda self, x: drop(self.bn(x) * 1)), spec=SPEC)


def test_active_dropout_that_changes_nothing_is_gone():
    model = with_norm(lambda self, x: (F.dropout(x), F.dropout(self.bn(x), 0))[1])
    targets = [str(node.target) for node in capture(model, spec=SPEC).module.graph.nodes]
    assert not any("dropout" in target for target in targets)


def test_random_numbers_are_noticed():
    with pytest.raises(CaptureError, match="or draws random numbers; write it without"):
        capture(with_norm(lambda self, x: self.bn(x) + torch.rand_like(x)), spec=SPEC)


def test_what_is_computed_twice_is_computed_once():
    def forward(self, x):
        y = self.bn(self.conv(x))
        pooled = F.max_pool2d(y, 2) * 2 - F.max_pool2d(y, 2), F.max_pool2d(y, 2, 1)[:, :, :4, :4]
        return self.bn(self.conv(x)).mean() + pooled[0] + pooled[1]

    model, x = with_norm(forward), inputs((3, 8, 8))
    made = capture(model, spec=SPEC)
    assert torch.allclose(made.module(x), model(x), atol=1e-5)
    targets = [str(node.target) for node in made.module.graph.nodes]
    assert (targets.count("aten.max_pool2d.default"), targets.count("aten.conv2d.default")) == (2, 1)
    assert len(made.batch_norms) == 1


def test_an_in_place_relu_on_the_input_leaves_the_input_alone():
    model = with_norm(lambda self, x: self.bn(F.relu(self.conv(x).relu_() - 1, inplace=True)))
    made, x = capture(model, spec=SPEC), inputs((3, 8, 8))
    assert torch.allclose(made.module(x), model(x), atol=1e-6)


@pytest.mark.parametrize("given", ["module", "program"])
def test_a_graph_of_more_operations_than_any_network_is_refused_before_work(given, monkeypatch):
    model = small_conv().eval()
    if given == "program":
        model = torch.export.export(model, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: Dim.DYNAMIC},))
    monkeypatch.setattr("dffg.graph.nodes._MOST_OPERATIONS", 9)
    monkeypatch.setattr("dffg.graph.captured.functional_module", None)
    with pytest.raises(InputError, match=r"the network has \d+ operations, and at most 9 are taken"):
        capture(model, spec=SPEC)


def test_zero_variance_is_accepted_and_counted():
    model = randomize(small_conv())
    with torch.no_grad():
        model[1].running_var[:3] = 0
        model[4].running_var[5] = 0
    assert capture(model, spec=SPEC).zero_variance_channels == 4
    assert captured("conv").zero_variance_channels == 0


def test_an_exported_program_is_captured_like_its_model():
    model, x = randomize(small_conv()), inputs((3, 8, 8))
    program = export(model)
    assert program_input_shapes(program) == [(3, 8, 8)]
    made = capture(program, spec=SPEC)
    assert torch.allclose(made.module(x), model(x), atol=1e-6)
    assert [norm.name for norm in made.batch_norms] == ["1", "4"]


def test_an_input_that_is_not_described_is_asked_for():
    with pytest.raises(InputError, match="spec=, input_shape= or an example input"):
        capture(small_conv())


def test_a_shape_without_axes_is_refused():
    for shape in ((), []):
        with pytest.raises(InputError, match=r"input shape \(\) is not usable; give CxHxW"):
            capture(small_conv(), input_shape=shape)


def test_a_shape_beside_a_description_is_refused_even_where_they_agree():
    for shape in (SPEC.shape, (1, 8, 8)):
        with pytest.raises(InputError, match="both given; leave input_shape out"):
            capture(small_conv(), spec=SPEC, input_shape=shape)


def test_a_wrong_shape_is_told_with_the_shape():
    with pytest.raises(InputError, match=r"fails on an input of shape 1x8x8.*expected input(.|\n)*--input CxHxW"):
        capture(small_conv(), input_shape=(1, 8, 8))


def test_an_example_that_contradicts_the_description_is_refused():
    with pytest.raises(InputError, match=r"\(2, 3, 9, 9\), not a batch of \(3, 8, 8\)"):
        capture(small_conv(), torch.zeros(2, 3, 9, 9), spec=SPEC)


def test_a_model_that_cannot_be_copied_says_so():
    class Single(nn.Module):
        def __deepcopy__(self, memo):
            raise RuntimeError("only one of me")

    with pytest.raises(CaptureError, match=r"cannot be copied.*only one of me"):
        capture(Single(), spec=SPEC)


def test_half_precision_is_refused_with_the_way_out():
    with pytest.raises(CaptureError, match=r"float16; convert it with model\.float\(\)"):
        capture(small_conv().half(), spec=SPEC)


def test_python_control_flow_on_values_names_the_usual_causes():
    model = with_norm(lambda self, x: self.bn(x) if x.sum() > 0 else x)
    with pytest.raises(CaptureError, match=r"torch\.export cannot capture(.|\n)*control flow"):
        capture(model, spec=SPEC)


def test_a_fixed_batch_is_refused_with_the_way_out():
    with pytest.raises(CaptureError, match=r"fixed batch of 2; export it with\s+dynamic_shapes"):
        capture(export(small_conv(), dynamic=False), spec=SPEC)


def test_a_program_exported_in_train_mode_is_refused_with_the_way_out():
    model = randomize(small_conv()).train()
    program = torch.export.export(model, (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: Dim.DYNAMIC},))
    with pytest.raises(StatisticsError, match=r"BatchNorm 1 is in train mode; call model\.eval\(\)"):
        capture(program, spec=SPEC)


def test_a_decomposed_program_is_refused_with_the_reason():
    with pytest.raises(CaptureError, match=r"was decomposed \(run_decompositions\)"):
        capture(export(small_conv()).run_decompositions(), spec=SPEC)


def test_an_output_in_a_tuple_of_one_is_one_output():
    model, x = with_norm(lambda self, x: (self.bn(x),)), inputs((3, 8, 8))
    assert torch.allclose(capture(model, spec=SPEC).module(x), model(x)[0])


@pytest.mark.parametrize("dims", [None, []])
def test_a_mean_of_everything_names_its_axes(dims):
    model, x = with_norm(lambda self, x: x - torch.mean(self.bn(x), dim=dims, keepdim=True)), inputs((3, 8, 8))
    found = capture(model, spec=SPEC).module
    (mean,) = [node for node in found.graph.nodes if calls(node, torch.ops.aten.mean.dim)]
    assert mean.args[1:] == ([0, 1, 2, 3], True)
    torch.testing.assert_close(found(x), model(x))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x > 0, "the output of the network is torch.bool, which cannot be compared as a quantity"),
        (lambda x: x.argmax(1), "the output of the network is torch.int64, .*; return the scores .* without argmax"),
        (lambda x: 3, "the output of the network is no tensor; return tensors only"),
    ],
)
def test_an_output_that_holds_no_quantities_is_refused(answer, message):
    with pytest.raises(CaptureError, match=message):
        capture(with_norm(lambda self, x: answer(self.bn(x))), spec=SPEC)


def test_two_outputs_of_one_name_are_refused():
    model = with_norm(lambda self, x: {"a.b": self.bn(x), "a": {"b": self.conv(x)}})
    with pytest.raises(CaptureError, match=r"two outputs of the network are called a\.b; name one of them otherwise"):
        capture(model, spec=SPEC)


def test_classes_beside_scores_stay():
    model, x = with_norm(lambda self, x: {"scores": self.bn(x), "labels": self.bn(x).argmax(1)}), inputs((3, 8, 8))
    found, expected = capture(model, spec=SPEC).module(x), model(x)
    assert torch.equal(found[:, -64:].reshape(-1, 8, 8), expected["labels"].float())


def test_an_in_place_call_without_a_twin_is_named():
    model = with_norm(lambda self, x: self.bn(self.conv(x).transpose_(2, 3)))
    with pytest.raises(CaptureError, match=r"changes a tensor in place \(aten\.transpose_"):
        capture(model, spec=SPEC)


def test_writing_into_a_part_of_a_tensor_is_noticed():
    def forward(self, x):
        y = self.bn(self.conv(x))
        y[:, 0].mul_(3)
        return y

    with pytest.raises(CaptureError, match="writes into parts of a tensor in place"):
        capture(with_norm(forward), spec=SPEC)


def test_damaged_weights_are_noticed():
    model = randomize(small_conv())
    with torch.no_grad():
        model[8].bias[0] = float("nan")
    with pytest.raises(CaptureError, match=r"8\.bias holds NaN or infinite values"):
        capture(model, spec=SPEC)


def test_weights_that_give_nan_are_noticed():
    model = randomize(small_conv())
    with torch.no_grad():
        model[8].weight.fill_(3e38)
    with pytest.raises(CaptureError, match="NaN or infinite values on a random input"):
        capture(model, spec=SPEC)


def test_no_batch_norm_is_an_error_with_the_likely_reason():
    with pytest.raises(StatisticsError, match=r"no BatchNorm(.|\n)*unfolded network"):
        capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), spec=SPEC)


def test_missing_running_statistics_name_the_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(StatisticsError, match=r"BatchNorm 1 has no running statistics \(track_running_stats=False\)"):
        capture(model, spec=SPEC)


def test_computed_statistics_are_not_supported():
    model = with_norm(lambda self, x: F.batch_norm(x, x.mean() + self.bn.running_mean, self.bn.running_var))
    with pytest.raises(StatisticsError, match="computes its statistics"):
        capture(model, spec=SPEC)


@pytest.mark.parametrize("computed", ["weight", "bias"])
def test_a_computed_affine_part_is_not_supported(computed):
    """As of a conditional BatchNorm."""

    def forward(self, x):
        parts = {"weight": self.bn.weight, "bias": None, computed: x.mean((0, 2, 3))}
        return F.batch_norm(x, self.bn.running_mean, self.bn.running_var, **parts)

    with pytest.raises(StatisticsError, match="BatchNorm bn computes its weight or bias instead of storing them"):
        capture(with_norm(forward), spec=SPEC)


@pytest.mark.parametrize(
    ("buffer", "value"),
    [
        ("running_mean", float("nan")),
        ("running_mean", float("inf")),
        ("running_var", float("nan")),
        ("running_var", float("inf")),
        ("running_var", -1e-3),
    ],
)
def test_damaged_statistics_name_the_layer_and_the_channels(buffer, value):
    model, _ = network("inverted-residual")
    with torch.no_grad():
        getattr(model.block[1], buffer)[[2, 7]] = value
    with pytest.raises(StatisticsError, match=r"BatchNorm block\.1 has NaN.*in 2 of 16 channels \(first: \[2, 7\]\)"):
        capture(model, spec=SPEC)


@pytest.mark.parametrize("kernel", [1, 3, 4, (3, 4)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_named_padding_becomes_numbers(kernel, dilation):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, kernel, padding="same", dilation=dilation)
    model = randomize(nn.Sequential(layer, nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding="valid", bias=False)))
    made = capture(model, spec=ImageSpec(shape=(3, 12, 10)))
    targets = {node.target for node in made.module.graph.nodes}
    assert torch.ops.aten.conv2d.default in targets
    assert torch.ops.aten.conv2d.padding not in targets
    x = inputs((3, 12, 10), 5)
    assert torch.allclose(made.module(x), model(x), rtol=1e-5, atol=1e-6)
    assert len(made.batch_norms) == 1


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 4, 3, stride=2, padding=5, dilation=2, groups=2), (2, 2, 1)),
        (nn.Conv2d(2, 4, 1, stride=2, padding=(0, 1), dilation=2), (2, 2, 1)),
        (nn.Conv2d(2, 4, (2, 3), padding=(1, 3)), (2, 5, 4)),
        (nn.Conv1d(2, 4, 2, padding=1, dilation=2), (2, 1)),
        (nn.Conv3d(2, 4, 1, padding=1), (2, 2, 3, 4)),
    ],
)
def test_a_column_that_reads_nothing_but_padding_reads_zeros(layer, shape):
    """oneDNN ends the process otherwise, at the first two."""
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(shape)]
    model = randomize(nn.Sequential(norm(2), layer))
    found = capture(model, spec=ImageSpec(shape=shape))
    assert sum(calls(node, torch.ops.aten.pad.default) for node in found.module.graph.nodes) == 1
    x = inputs(shape)
    expected = model(x)
    assert torch.allclose(found.module(channels_last(x)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 2}, {"padding": 2, "dilation": 2}, {"stride": 3}])
def test_other_padding_stays_with_its_convolution(options):
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3, **options), nn.BatchNorm2d(4)))
    found = capture(model, spec=SPEC)
    assert not any(calls(node, torch.ops.aten.pad.default) for node in found.module.graph.nodes)


def test_what_is_stored_is_computed_once_and_keeps_its_layer():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.head = nn.BatchNorm2d(3), nn.Linear(5, 3)

        def forward(self, x):
            return F.linear(self.bn(x).mean((2, 3)), 2 * self.head.weight.t())

    model = randomize(Transposed())
    found = capture(model, spec=SPEC)
    linear = next(node for node in found.module.graph.nodes if calls(node, LINEAR))
    assert is_stored(linear.args[1])
    assert layer_name(linear) == "head"
    assert torch.allclose(weight_of(found.module, linear), 2 * model.head.weight.t())
    x = inputs((3, 8, 8))
    assert torch.allclose(found.module(x), model(x), atol=1e-6)


class Named(nn.Module):
    """A layer with each of these names, which has a constant, and a buffer called by the first."""

    def __init__(self, *names):
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for name in names})
        for part in self.parts.values():
            part.constant = torch.rand(3, 1, 1)
        self.register_buffer(names[0], torch.rand(3, 1, 1))

    def forward(self, x):
        for part in self.parts.values():
            x = part(x) * part.constant + next(self.buffers(recurse=False))
        return x


@pytest.mark.parametrize("given", ["module", "program"])
@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("class",), ["class_"]),
        (("in", "None", "usual"), ["in_", "None_", "usual"]),
        (("lambda", "lambda_", "in"), ["lambda__", "lambda_", "in__"]),
    ],
)
def test_parts_may_be_called_by_keywords(names, shown, given):
    model, x = randomize(Named(*names)), inputs((3, 8, 8))
    expected, program = model(x), export(model)
    before = str(program.graph_signature)
    made = capture(model if given == "module" else program, spec=SPEC)
    assert torch.allclose(made.module(x), expected, atol=1e-6)
    assert [norm.name for norm in made.batch_norms] == [f"parts.{name}.1" for name in shown]
    assert str(program.graph_signature) == before


def test_a_view_of_what_was_copied_survives_without_the_copy():
    """As in ShuffleNet: channels are exchanged, copied, and looked at in another shape."""

    def shuffle(self, x):
        return self.bn(self.conv(x).transpose(1, 2).contiguous().view(-1, 24, 8).reshape(-1, 3, 8, 8))

    model, x = with_norm(shuffle), inputs((3, 8, 8))
    assert torch.allclose(capture(model, spec=SPEC).module(x), model(x), atol=1e-6)
