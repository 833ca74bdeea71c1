import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dffg.config import SynthesisConfig
from dffg.errors import InputError, OutputError
from dffg.images import SnapshotRecord, SyntheticSet, concatenate, pictures_in
from dffg.spec import ImageSpec, parse_bounds, parse_numbers, parse_shape

IMAGENET = ImageSpec(shape=(3, 4, 6), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
FEATURES = ImageSpec(shape=(1, 49, 10), bounds=(-130.0, 30.0), source="audio")


def make_set(spec=IMAGENET, count=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *spec.shape), dtype=np.uint8)
    low, high = spec.bounds
    inputs = spec.from_uint8(pixels) if spec.is_pixels else (low + (high - low) / 255 * pixels).astype(np.float32)
    return SyntheticSet(
        inputs=inputs,
        spec=spec,
        config=SynthesisConfig(count=count, seed=7, decay=0.25),
        snapshots=(
            SnapshotRecord(chain=0, step=12, loss=0.5, count=2),
            SnapshotRecord(chain=1, step=3, loss=1, count=1),
        ),
        losses=((0.75, 0.5), (2.0, None, 1.0)),
    )


def test_normalize_subtracts_the_mean_and_divides_by_the_std_of_each_channel():
    pixels = np.full((3, 4, 6), 0.5, dtype=np.float32)
    answer = IMAGENET.normalize(pixels)
    assert answer[:, 0, 0] == pytest.approx([0.0655022, 0.1964286, 0.4177778], abs=1e-6)
    assert (answer == answer[:, :1, :1]).all()
    assert answer.dtype == np.float32


def test_one_mean_and_std_serve_all_channels():
    spec = ImageSpec(shape=(4, 2, 2), mean=(0.5,), std=(0.25,))
    assert spec.normalize(np.ones((4, 2, 2), np.float32)) == pytest.approx(np.full((4, 2, 2), 2.0))


def test_denormalize_undoes_normalize():
    pixels = np.random.default_rng(0).random((5, 3, 4, 6), dtype=np.float32)
    assert IMAGENET.denormalize(IMAGENET.normalize(pixels)) == pytest.approx(pixels, abs=1e-6)


def test_every_pixel_value_survives_the_way_to_network_input_and_back():
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 3, 4, 6))
    inputs = IMAGENET.from_uint8(pixels)
    assert inputs[128, 0, 0, 0] == pytest.approx((128 / 255 - 0.485) / 0.229, abs=1e-6)
    assert (IMAGENET.to_uint8(inputs) == pixels).all()


def test_pixels_are_rounded_to_the_nearest_and_clipped():
    spec = ImageSpec(shape=(1, 1, 5))
    values = np.array([-0.5, 0.6 / 255, 1.4 / 255, 254.6 / 255, 1.5], np.float32).reshape(1, 1, 1, 5)
    assert spec.to_uint8(values).ravel().tolist() == [0, 1, 1, 255, 255]


def test_input_bounds_are_the_normalized_bounds():
    low, high = IMAGENET.input_bounds()
    assert low.shape == high.shape == (3, 1, 1)
    assert low.ravel() == pytest.approx([-2.1179039, -2.0357143, -1.8044445], abs=1e-6)
    assert high.ravel() == pytest.approx([2.2489083, 2.4285714, 2.64], abs=1e-6)


def test_bounds_of_features_are_in_units_before_normalization():
    spec = ImageSpec(shape=(1, 8), mean=(10.0,), std=(4.0,), bounds=(-130.0, 30.0))
    low, high = spec.input_bounds()
    assert (low.shape, float(low[0, 0]), float(high[0, 0])) == ((1, 1), -35.0, 5.0)


@pytest.mark.parametrize(
    ("shape", "bounds", "expected"),
    [((3, 8, 8), (0.0, 1.0), True), ((3, 8, 8), (0.0, 16.0), False), ((8, 100), (0.0, 1.0), False)],
)
def test_pictures_are_three_axes_with_bounds_zero_to_one(shape, bounds, expected):
    assert ImageSpec(shape=shape, bounds=bounds).is_pixels is expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": ()}, "input shape"),
        ({"shape": (3, 0, 4)}, "positive sizes"),
        ({"shape": (3, -2, 4)}, "positive sizes"),
        ({"shape": (3, 2**15, 2**15)}, "3x32768x32768 has 3221225472 numbers, and at most 268435456 are taken"),
        ({"shape": (3, 4, 4), "mean": (0.5, 0.5)}, "does not fit 3 channels"),
        ({"shape": (3, 4, 4), "std": (1.0,) * 4}, "does not fit 3 channels"),
        ({"shape": (3, 4, 4), "mean": (float("nan"),)}, "mean"),
        ({"shape": (3, 4, 4), "std": (0.5, 0.0, 0.5)}, "must be positive"),
        ({"shape": (3, 4, 4), "bounds": (1.0, 1.0)}, "lower one first"),
        ({"shape": (3, 4, 4), "bounds": (1.0, 0.0)}, "lower one first"),
        ({"shape": (3, 4, 4), "bounds": (0.0, float("inf"))}, "finite"),
        ({"shape": (3, 4, 4), "bounds": (float("nan"), 1.0)}, "finite"),
    ],
)
def test_an_impossible_input_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        ImageSpec(**fields)


def test_shapes_numbers_and_bounds_are_read():
    assert parse_shape("3x224X160") == (3, 224, 160)
    assert parse_numbers("0.485,0.456,.406") == (0.485, 0.456, 0.406)
    assert parse_bounds("-130:30") == (-130.0, 30.0)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (parse_shape, "3,224"),
        (parse_shape, ""),
        (parse_numbers, "a,b"),
        (parse_numbers, "0.5;0.5"),
        (parse_bounds, "1"),
        (parse_bounds, "0:1:2"),
        (parse_bounds, "0-1"),
    ],
)
def test_what_cannot_be_read_is_named(read, text):
    with pytest.raises(InputError, match=r"write them? like|write it like"):
        read(text)


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=5))
@settings(max_examples=30)
def test_any_shape_is_read_as_written(sizes):
    assert parse_shape("x".join(map(str, sizes))) == tuple(sizes)


@pytest.mark.parametrize("spec", [IMAGENET, FEATURES], ids=["pictures", "features"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_saved_and_reloaded_set_is_the_same_set(tmp_path, suffix, spec):
    made = make_set(spec)
    made.save(tmp_path / f"images{suffix}")
    loaded = SyntheticSet.load(tmp_path / f"images{suffix}")
    assert loaded.inputs.tobytes() == made.inputs.tobytes()
    assert loaded.inputs.dtype == np.float32
    assert (loaded.spec, loaded.config, loaded.snapshots) == (made.spec, made.config, made.snapshots)
    assert loaded.losses == ((0.75, 0.5), (2.0, None, 1.0))
    assert len(loaded) == 3


def test_a_file_that_does_not_say_the_losses_can_be_read(tmp_path):
    made = make_set()
    metadata = json.loads(made._metadata())
    del metadata["losses"]
    np.savez(tmp_path / "set.npz", images=made.spec.to_uint8(made.inputs), metadata=np.asarray(json.dumps(metadata)))
    loaded = SyntheticSet.load(tmp_path / "set.npz")
    assert loaded.losses == ()
    assert loaded.snapshots == made.snapshots


@pytest.mark.parametrize(("count", "snapshots", "chains"), [(1, 1, 1), (2, 1, 1), (3, 2, 2)])
def test_the_first_images_come_with_the_records_of_their_chains(count, snapshots, chains):
    made = make_set()
    first = made.first(count)
    assert np.array_equal(first.inputs, made.inputs[:count])
    assert sum(snapshot.count for snapshot in first.snapshots) == count
    assert len(first.snapshots) == snapshots
    assert first.losses == made.losses[:chains]


def test_pictures_are_stored_as_pixels_and_features_as_network_input(tmp_path):
    make_set(IMAGENET).save(tmp_path / "pictures.npz")
    make_set(FEATURES).save(tmp_path / "features.npz")
    with np.load(tmp_path / "pictures.npz") as pictures, np.load(tmp_path / "features.npz") as features:
        assert sorted(pictures.files) == ["images", "metadata"]
        assert (pictures["images"].dtype, pictures["images"].shape) == (np.uint8, (3, 3, 4, 6))
        assert sorted(features.files) == ["features", "metadata"]
        assert features["features"].dtype == np.float32
        assert json.loads(str(features["metadata"]))["schema_version"] == 1


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_leaves_the_legal_pixels_is_stored_as_network_input(tmp_path, suffix):
    made = dataclasses.replace(make_set(), inputs=3 * make_set().inputs)
    made.save(tmp_path / f"set{suffix}")
    assert np.array_equal(SyntheticSet.load(tmp_path / f"set{suffix}").inputs, made.inputs)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_pictures_holds_the_pixels(tmp_path, channels):
    made = make_set(ImageSpec(shape=(channels, 4, 6)))
    made.save(tmp_path / "folder" / "pictures")
    *files, names = sorted((tmp_path / "folder" / "pictures").iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    assert names.name == "list.txt"
    assert names.read_text() == "00000.png\n00001.png\n00002.png\n"
    for file, inputs in zip(files, made.inputs):
        with Image.open(file) as opened:
            picture = np.asarray(opened).reshape(4, 6, channels)
        assert (picture == np.rint(inputs * 255).transpose(1, 2, 0)).all()


def test_the_pictures_of_a_folder_are_those_in_its_list(tmp_path):
    assert pictures_in(tmp_path / "nowhere") == frozenset()
    make_set().save(tmp_path)
    (tmp_path / "00003.png").write_bytes(b"another's")
    assert pictures_in(tmp_path) == {"00000.png", "00001.png", "00002.png"}
    (tmp_path / "00001.png").unlink()
    assert pictures_in(tmp_path) == {"00000.png", "00002.png"}


HOSTILE = ["../00000.png", "/etc/00000.png", "notes.txt", "deep/00000.png", ".", "..", "", "00004.png", "00005.png\0"]


def test_a_hostile_list_names_only_pictures_of_ours(tmp_path):
    folder = tmp_path / "folder"
    make_set().save(folder)
    (folder / "deep").mkdir()
    (folder / "00004.png").mkdir()
    for place in (tmp_path / "00000.png", folder / "notes.txt", folder / "deep" / "00000.png"):
        place.write_text("another's")
    (folder / "list.txt").write_text("\n".join([*HOSTILE, "00002.png"]))
    assert pictures_in(folder) == {"00002.png"}
    (folder / "list.txt").write_bytes(b"00002.png\n\xff\xfe")
    assert pictures_in(folder) == frozenset()
    (folder / "list.txt").unlink()
    (folder / "list.txt").mkdir()
    assert pictures_in(folder) == frozenset()


@pytest.mark.parametrize("spec", [FEATURES, ImageSpec(shape=(5, 4, 4))], ids=["features", "five-channels"])
def test_what_is_no_picture_is_not_drawn(tmp_path, spec):
    with pytest.raises(OutputError, match=r"not pictures.*\.npz"):
        make_set(spec).save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_what_leaves_the_legal_pixels_is_not_drawn(tmp_path):
    made = dataclasses.replace(make_set(), inputs=3 * make_set().inputs)
    with pytest.raises(OutputError, match=r"left what 8-bit pixels can hold.*; save them as \.npz or \.safetensors"):
        made.save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


class Pickled:
    def __reduce__(self):
        return (pytest.fail, ("pickled content was run",))


def test_pickled_content_is_refused(tmp_path):
    made = make_set()
    np.savez(tmp_path / "set.npz", images=np.array([Pickled()], dtype=object), metadata=np.asarray(made._metadata()))
    with pytest.raises(InputError, match=r"set\.npz is not"):
        SyntheticSet.load(tmp_path / "set.npz")


def _truncated(made, path):
    made.save(path)
    path.write_bytes(path.read_bytes()[:200])


def _without_metadata(made, path):
    if path.suffix == ".npz":
        np.savez(path, images=made.spec.to_uint8(made.inputs))
    else:
        from safetensors.numpy import save_file

        save_file({"images": made.spec.to_uint8(made.inputs)}, path)


def _not_ours(made, path):
    path.write_bytes(pickle.dumps({"a": 1}))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "damage",
    [_truncated, _without_metadata, _not_ours, lambda made, path: None],
    ids=["cut", "bare", "other", "absent"],
)
def test_a_file_that_is_no_set_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"set{suffix}"
    damage(make_set(), path)
    with pytest.raises(InputError, match=f"set{suffix} is not"):
        SyntheticSet.load(path)


def test_metadata_that_cannot_be_read_is_an_input_error(tmp_path):
    np.savez(tmp_path / "set.npz", images=np.zeros((1, 3, 4, 6), np.uint8), metadata=np.asarray("not json"))
    with pytest.raises(InputError, match=r"set\.npz is not"):
        SyntheticSet.load(tmp_path / "set.npz")


def test_batches_are_joined_in_order():
    assert concatenate([np.zeros((2, 1), np.float32), np.ones((1, 1), np.float32)]).ravel().tolist() == [0, 0, 1]


def test_no_batch_at_all_says_what_to_raise():
    with pytest.raises(InputError, match="--max-seconds"):
        concatenate([])
