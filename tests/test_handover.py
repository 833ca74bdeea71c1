import dataclasses
import re

import numpy as np
import pytest
import torch

from dffg import handover
from dffg.config import ArrayConfig
from dffg.errors import InputError
from dffg.spec import ImageSpec, JointSpec
from tests.test_images import FEATURES, IMAGENET, make_set

JOINT = JointSpec.of([IMAGENET, ImageSpec(shape=(5,), bounds=(-3.0, 2.0))])


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
    pytest.importorskip("nncf", reason="NNCF is not installed")
    made = make_set()
    rows = list(handover.nncf_dataset(made, name).get_inference_data())
    assert len(rows) == 3
    for row, image in zip(rows, made.inputs):
        assert isinstance(row, np.ndarray) == (name is None)
        assert np.array_equal((row if name is None else row["x"])[0], image)


def parts(made):
    """The numbers of every image and of every vector, cut by hand."""
    return made.inputs[:, :72].reshape(-1, 3, 4, 6), made.inputs[:, 72:]


def same(found, expected):
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


def test_several_inputs_are_fed_by_their_names():
    made = make_set(JOINT)
    pictures, vectors = parts(made)
    for names, called in ((["picture", "measured"],) * 2, (None, ["input0", "input1"])):
        fed = handover.feeds(made, names, batch_size=2)
        assert [list(batch) for batch in fed] == [called] * 2
        assert same([batch[called[0]] for batch in fed], [pictures[:2], pictures[2:]])
        assert same([batch[called[1]] for batch in fed], [vectors[:2], vectors[2:]])
        assert all(values.flags.c_contiguous for batch in fed for values in batch.values())


def test_a_calibration_reader_has_every_input():
    made = make_set(JOINT)
    reader = handover.calibration_reader(made, ["picture", "measured"], batch_size=2)
    assert len(reader) == 2
    batch = reader.get_next()
    assert same([batch["picture"], batch["measured"]], [part[:2] for part in parts(made)])


def test_a_representative_dataset_lists_the_inputs_with_channels_of_pictures_last():
    made = make_set(JOINT)
    pictures, vectors = parts(made)
    rows = list(handover.representative_dataset(made)())
    assert len(rows) == 3
    assert same(rows[1], [pictures[1:2].transpose(0, 2, 3, 1), vectors[1:2]])
    assert same(next(handover.representative_dataset(made, layout="nchw")()), [pictures[:1], vectors[:1]])


def test_a_data_loader_lists_the_inputs():
    made = make_set(JOINT)
    batches = list(handover.data_loader(made, batch_size=2))
    assert len(batches) == 2
    assert same(batches[0], [torch.from_numpy(part[:2]) for part in parts(made)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("names", [None, ["picture", "measured"]])
def test_an_nncf_dataset_holds_every_input(names):
    pytest.importorskip("nncf", reason="NNCF is not installed")
    made = make_set(JOINT)
    rows = list(handover.nncf_dataset(made, names).get_inference_data())
    assert len(rows) == 3
    assert same(rows[2] if names is None else [rows[2][name] for name in names], [part[2:] for part in parts(made)])


@pytest.mark.parametrize("names", ["x", ["x"], ["x", "y", "z"], ["x", "x"]])
def test_names_that_do_not_fit_the_inputs_are_refused(names):
    message = f"input_name is {names!r}, and the network has 2 inputs; give each a name of its own"
    with pytest.raises(InputError, match=re.escape(message)):
        handover.feeds(make_set(JOINT), names)


def test_one_array_of_several_inputs_is_refused():
    with pytest.raises(InputError, match=r"has 2 inputs, which do not go into one array; save them as \.npz"):
        handover.array(make_set(JOINT))


def test_the_small_form_of_an_image_set_is_its_pixels():
    assert make_set(FEATURES).pixels() is None
    assert make_set(IMAGENET).pixels().dtype == np.uint8
