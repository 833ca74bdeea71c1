from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from dffg.images import SnapshotRecord
from dffg.report.gallery import drawable, gallery
from dffg.spec import ImageSpec, JointSpec
from tests.report.pages import made_set

GRAY = ImageSpec(shape=(1, 8, 8))
FEATURES = ImageSpec(shape=(1, 9, 4), bounds=(-130.0, 30.0))
SEQUENCE = ImageSpec(shape=(6, 20), bounds=(-1.0, 1.0))


def opened(address: str) -> Image.Image:
    head, _, content = address.partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == f"data:{Image.MIME[picture.format]}"
    return picture


def level(address: str) -> int:
    (found,) = np.unique(np.asarray(opened(address))[..., :3])
    return int(found)


@pytest.mark.parametrize("spec", [made_set().spec, GRAY, FEATURES], ids=["rgb", "gray", "features"])
def test_rows_are_images_and_columns_are_what_was_kept_of_them(spec):
    found = gallery(made_set(spec))
    assert found.steps == (6, 7)
    assert [(row.chain, row.image) for row in found.rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for row in found.rows:
        expected = [50 * (row.chain - 1) + 10 * (row.image - 1) + step for step in found.steps]
        assert [level(address) for address in row.pictures] == expected


def test_few_rows_are_spread_over_many_chains_from_the_first_to_the_last():
    found = gallery(made_set(chains=10, size=1))
    assert [row.chain for row in found.rows] == [1, 4, 7, 10]


def test_few_columns_are_spread_over_many_steps():
    made = made_set(chains=1, size=1)
    records = tuple(SnapshotRecord(chain=0, step=step, loss=None, count=1) for step in range(20))
    inputs = np.concatenate([made.inputs[:1]] * 20)
    found = gallery(dataclasses.replace(made, inputs=inputs, snapshots=records))
    assert found.steps == (0, 3, 7, 11, 15, 19)


def test_what_a_chain_that_was_cut_off_did_not_keep_is_left_empty():
    found = gallery(made_set().first(7))
    assert [(row.chain, row.image) for row in found.rows] == [(1, 1), (1, 2), (2, 1)]
    assert found.rows[-1].pictures[1] is None
    assert level(found.rows[-1].pictures[0]) == 56
    first, second = gallery(made_set().first(10)).rows[-2:]
    assert [level(address) for address in first.pictures] == [56, 57]
    assert level(second.pictures[0]) == 66
    assert second.pictures[1] is None


def test_large_pictures_are_made_smaller_and_small_ones_are_exact():
    large = gallery(made_set(ImageSpec(shape=(3, 224, 448))))
    picture = opened(large.rows[0].pictures[0])
    assert (picture.size, picture.format) == ((160, 80), "JPEG")
    assert abs(np.asarray(picture).astype(int) - 6).max() <= 2
    small = opened(gallery(made_set()).rows[0].pictures[0])
    assert (small.size, small.format) == ((8, 8), "PNG")


def test_four_channels_keep_their_transparency():
    assert opened(gallery(made_set(ImageSpec(shape=(4, 200, 200)))).rows[0].pictures[0]).mode == "RGBA"


def test_features_are_drawn_from_the_lower_to_the_upper_bound():
    made = made_set(FEATURES)
    made.inputs[0] = np.linspace(-130, 30, 36).reshape(1, 9, 4)
    pixels = np.asarray(opened(gallery(made).rows[0].pictures[0]))
    assert pixels.shape == (9, 4)
    assert (pixels[0, 0], pixels[-1, -1]) == (0, 255)
    assert pixels.ravel().tolist() == np.rint(np.linspace(0, 255, 36)).tolist()


def test_a_sequence_is_a_picture_of_channels_and_time():
    assert opened(gallery(made_set(SEQUENCE)).rows[0].pictures[0]).size == (20, 6)


@pytest.mark.parametrize(
    "spec",
    [ImageSpec(shape=(5, 8, 8)), ImageSpec(shape=(3, 8, 8), bounds=(0.0, 16.0)), ImageSpec(shape=(12,))],
    ids=["five-channels", "three-features", "vector"],
)
def test_what_is_no_picture_is_not_drawn(spec):
    assert drawable(made_set(spec)) is None


def test_of_several_inputs_the_first_that_can_be_drawn_is():
    vector, picture = ImageSpec(shape=(5,)), ImageSpec(shape=(3, 8, 8))
    alone, joint = made_set(picture), JointSpec.of([vector, picture])
    inputs = joint.join([np.zeros((len(alone), 5), np.float32), alone.inputs])
    drawn = drawable(dataclasses.replace(alone, spec=joint, inputs=inputs))
    assert gallery(drawn) == gallery(alone)
    assert drawable(dataclasses.replace(alone, spec=JointSpec.of([vector] * 2), inputs=inputs[:, :10])) is None
    assert drawable(alone) is alone
