import dataclasses

import numpy as np
import pytest
import torch

from dffg import handover
from dffg.config import ArrayConfig
from dffg.errors import InputError
from dffg.spec import ImageSpec
from tests.test_images import FEATURES, IMAGENET, make_set


def pixel(made, image, channel, row, column):
    """One network input of the set, by its definition."""
    spec = made.spec
    return (made.pixels()[image, channel, row, column] / 255 - spec.mean[channel]) / spec.std[channel]


def test_an_array_holds_network_inputs_channels_first():
    made = make_set()
    answer = handover.array(made)
    assert (answer.shape, answer.dtype) == ((3, 3, 4, 6), np.float32)
    assert answer[1, 2, 3, 4] == pytest.approx(pixel(made, 1, 2, 3, 4), abs=1e-6)


def test_channels_come_last_in_nhwc():
    made = make_set()
    answer = handover.array(made, ArrayConfig(layout="nhwc"))
    assert (answer.shape, answer.dtype) == ((3, 4, 6, 3), np.float32)
    assert answer[1, 3, 4, 2] == pytest.approx(pixel(made, 1, 2, 3, 4), abs=1e-6)
    assert answer.flags.c_contiguous


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_are_integers_that_normalize_to_the_inputs(layout):
    made = make_set()
    answer = handover.array(made, ArrayConfig(layout=layout, values="pixels"))
    assert answer.dtype == np.uint8
    value = answer[1, 2, 3, 4] if layout == "nchw" else answer[1, 3, 4, 2]
    assert (value / 255 - 0.406) / 0.225 == pytest.approx(made.inputs[1, 2, 3, 4], abs=1e-6)


@pytest.mark.parametrize(
    ("spec", "config", "message"),
    [
        (FEATURES, {"values": "pixels"}, "not pixels; choose values inputs"),
        (ImageSpec(shape=(8, 10), bounds=(0.0, 4.0)), {"layout": "nhwc"}, "no layout nhwc; choose nchw"),
    ],
)
def test_what_an_input_is_not_is_refused(spec, config, message):
    made = make_set(spec)
    with pytest.raises(InputError, match=message):
        handover.array(made, ArrayConfig(**config))
    assert handover.array(made).shape == made.inputs.shape


def test_images_that_left_the_pixels_are_not_rounded_to_pixels():
    made = dataclasses.replace(make_set(), inputs=3 * make_set().inputs)
    with pytest.raises(InputError, match="generator dffg has left what 8-bit pixels can hold"):
        handover.array(made, ArrayConfig(values="pixels"))


@pytest.mark.parametrize("field", ["layout", "values"])
def test_an_unknown_form_is_named(field):
    with pytest.raises(InputError, match=f"{field} is 'hwcn'; choose one of"):
        ArrayConfig(**{field: "hwcn"})


def test_feeds_are_batches_by_input_name():
    made = make_set()
    fed = handover.feeds(made, "pixels", batch_size=2)
    assert [batch["pixels"].shape for batch in fed] == [(2, 3, 4, 6), (1, 3, 4, 6)]
    assert np.array_equal(np.concatenate([batch["pixels"] for batch in fed]), made.inputs)
    assert [list(batch) for batch in handover.feeds(made)] == [["input"]] * 3
    assert handover.feeds(made, layout="nhwc")[2]["input"].shape == (1, 4, 6, 3)


def test_a_data_loader_has_every_image_in_order():
    made = make_set()
    batches = list(handover.data_loader(made, batch_size=2))
    assert [batch.shape for batch in batches] == [(2, 3, 4, 6), (1, 3, 4, 6)]
    assert torch.equal(torch.cat(batches), torch.from_numpy(made.inputs))


def test_a_representative_dataset_can_be_asked_twice():
    made = make_set()
    dataset = handover.representative_dataset(made)
    for _ in range(2):
        rows = list(dataset())
        assert [[value.shape for value in row] for row in rows] == [[(1, 4, 6, 3)]] * 3
        assert np.array_equal(np.concatenate([row[0] for row in rows]).transpose(0, 3, 1, 2), made.inputs)
    assert next(handover.representative_dataset(made, layout="nchw")())[0].shape == (1, 3, 4, 6)


def test_a_calibration_reader_ends_with_none_and_can_be_rewound():
    from onnxruntime.quantization import CalibrationDataReader

    made = make_set()
    reader = handover.calibration_reader(made, "x", batch_size=2)
    assert isinstance(reader, CalibrationDataReader)
    assert len(reader) == 2
    assert np.array_equal(np.concatenate([batch["x"] for batch in reader]), made.inputs)
    assert reader.get_next() is None
    reader.rewind()
    assert np.array_equal(reader.get_next()["x"], made.inputs[:2])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [None, "x"])
def test_an_nncf_dataset_holds_what_the_backend_is_fed(name):
    pytest.importorskip("nncf", reason="NNCF is an extra")
    made = make_set()
    rows = list(handover.nncf_dataset(made, name).get_inference_data())
    assert len(rows) == 3
    for row, image in zip(rows, made.inputs):
        assert isinstance(row, np.ndarray) == (name is None)
        assert np.array_equal((row if name is None else row["x"])[0], image)


def test_the_small_form_of_an_image_set_is_its_pixels():
    assert make_set(FEATURES).pixels() is None
    assert make_set(IMAGENET).pixels().dtype == np.uint8
