"""Random networks through everything: captured, folded, given images, quantized, written and run in ONNX Runtime."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hypothesis import assume, example, given, settings
from torch.testing import assert_close

from dffg.config import LearningConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.export.onnx import write_quantized
from dffg.export.onnxruntime import run
from dffg.export.verification import match_simulation
from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms
from dffg.quant.decide import decide
from dffg.quant.learning import learn
from dffg.spec import ImageSpec
from dffg.synthesis.synthesize import synthesize_set
from tests.networks import inputs
from tests.random_networks import Conv, Depthwise, Join, Norm, Plan, Pool, Shared, plans

# Each takes the exporter to ONNX a second or more.
NETWORKS = int(os.environ.get("DFFG_RANDOM_NETWORKS", "50"))
QUICK = SynthesisConfig(count=8, batch_size=4, steps=3, burn_in=1)
FEW_STEPS = LearningConfig(recipe="fast", learning_images=8, reconstruction_steps=2, finetune_steps=2)


# What was found here.
TWO_NORMS = Plan(shape=(2, 4, 4), steps=(Conv(channels=2, activation="none"), Norm()))
NOTHING_ABOVE_ZERO = Plan(
    shape=(4, 4, 3),
    steps=(
        Conv(channels=2, kernel=3, stride=2, activation="none"),
        *(Shared(activation="none"), Pool(maximum=False, kernel=3), Shared(activation="none")),
        *(Pool(maximum=False, kernel=3), Shared(activation="none")),
    ),
    head="flatten",
    seed=128,
    bits=(5, 3),
    learns=True,
)
NO_BIAS_OF_ITS_OWN = Plan(
    shape=(1, 1, 1),
    steps=(
        Conv(channels=1, kernel=1, activation="none"),
        Conv(channels=1, kernel=1, padding=0, bias=False, norm=False, activation="none"),
    ),
    head="none",
    bits=(2, 2),
    learns=True,
)
STRIDE_PAST_THE_INPUT = Plan(
    shape=(4, 3, 1), steps=(Conv(channels=3, kernel=2, stride=2),), head="two-layers", bits=(2, 3), learns=True
)
READS_NOTHING_BUT_PADDING = Plan(
    shape=(3, 1, 1),
    steps=(
        Conv(channels=6, activation="none"),
        Conv(channels=4, stride=2, padding=1, dilation=2, groups=5, norm=False, activation="none"),
        *(Depthwise(stride=2, activation="none"), Join(left=6, right=4, concat=False, activations=("none", "none"))),
    ),
    bits=(2, 2),
    learns=True,
)

READS_NOTHING_BUT_PADDING_IN_ITS_WIDTH = Plan(
    shape=(3, 2, 1),
    steps=(
        Conv(channels=2, activation="none"),
        Conv(channels=4, kernel=3, stride=2, padding=1, dilation=2, groups=4, bias=True, norm=False),
    ),
    learns=True,
)


def check(plan: Plan) -> None:
    """The float answer survives capture and folding, the quantized one export; nothing is NaN."""
    model = plan.network()
    captured = capture(model, spec=ImageSpec(shape=plan.shape))
    images = inputs(plan.shape, 16, plan.seed)
    with torch.no_grad():
        expected = model(images)
        folded = fold_batch_norms(captured)(images)
    assert_close(folded, expected, rtol=1e-4, atol=1e-4 * max(1, float(expected.abs().max())))
    made = torch.from_numpy(synthesize_set(captured, QUICK).inputs)
    assert made.isfinite().all()
    try:
        decided = decide(captured, torch.split(made, QUICK.batch_size), plan.config)
    except InputError as error:
        assume("no widths fit the budget" not in str(error))
        raise
    if plan.learns:
        learned = learn(decided.float_module, decided.parameters, made, FEW_STEPS, plan.seed)
        decided = replace(decided, parameters=learned)
    quantized = decided.insert()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_quantized(quantized, captured.spec, path)
        match = match_simulation(quantized, path, images)
        (answer,) = run(path, [images.numpy()])
    assert np.isfinite(answer).all()
    assert answer.shape == tuple(expected.shape)
    assert match.holds, match


@settings(max_examples=NETWORKS)
@given(plans)
@example(TWO_NORMS)
@example(NOTHING_ABOVE_ZERO)
@example(NO_BIAS_OF_ITS_OWN)
@example(STRIDE_PAST_THE_INPUT)
@example(READS_NOTHING_BUT_PADDING)
@example(READS_NOTHING_BUT_PADDING_IN_ITS_WIDTH)
def test_random_networks_survive_everything(plan: Plan) -> None:
    check(plan)
