from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dffg.errors import InputError
from dffg.evaluation.data import check_folders, fit_picture, load_data, read_picture
from dffg.spec import ImageSpec, JointSpec

SPEC = ImageSpec(shape=(3, 8, 8))
NORMALIZED = ImageSpec(shape=(3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
FEATURES = ImageSpec(shape=(1, 4, 5), bounds=(-130.0, 30.0))


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def gradient(width: int, height: int) -> Image.Image:
    """Smooth, so that scaling can be checked by what is where."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


def png(path, seed=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = picture(*size, seed=seed)
    made.save(path)
    return np.moveaxis(np.asarray(made), -1, 0)


def all_inputs(data, size=2):
    return np.concatenate(list(data.batches(size)))


# Fitting pictures


@pytest.mark.parametrize("size", [(227, 227), (224, 224), (256, 256), (250, 300), (640, 224), (256, 300)])
def test_prepared_picture_is_only_cropped(size):
    source = picture(*size)
    fitted = np.asarray(fit_picture(source, 224, 224, 0.875))
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    np.testing.assert_array_equal(fitted, np.asarray(source)[top : top + 224, left : left + 224])


def test_larger_picture_is_scaled_to_its_shorter_side_and_cropped():
    source = picture(300, 400)
    # 300 -> 256 = 224 / 0.875, 400 -> 341
    expected = source.resize((256, 341), Image.Resampling.BICUBIC).crop((16, 58, 240, 282))
    np.testing.assert_array_equal(np.asarray(fit_picture(source, 224, 224, 0.875)), np.asarray(expected))


def test_landscape_is_scaled_to_its_shorter_side_too():
    source = picture(400, 300)
    expected = source.resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 282, 240))
    np.testing.assert_array_equal(np.asarray(fit_picture(source, 224, 224, 0.875)), np.asarray(expected))


def test_smaller_picture_is_enlarged():
    source = picture(100, 120)
    expected = source.resize((256, 307), Image.Resampling.BICUBIC).crop((16, 41, 240, 265))
    np.testing.assert_array_equal(np.asarray(fit_picture(source, 224, 224, 0.875)), np.asarray(expected))


def test_crop_fraction_decides_how_much_is_kept():
    source = gradient(512, 512)
    whole, part = (np.asarray(fit_picture(source, 64, 64, fraction)) for fraction in (1.0, 0.5))
    assert whole.shape == part.shape == (64, 64, 3)
    assert whole[:, 0, 0].max() < 8
    assert whole[:, -1, 0].min() > 247
    # the middle half of the gradient: a quarter to three quarters of 255
    assert part[:, 0, 0].mean() == pytest.approx(64, abs=4)
    assert part[:, -1, 0].mean() == pytest.approx(191, abs=4)
    assert part[0, :, 1].mean() == pytest.approx(64, abs=4)


def test_input_that_is_not_square_is_filled():
    fitted = fit_picture(picture(100, 100), 16, 32, 1.0)
    assert fitted.size == (32, 16)
    expected = picture(100, 100).resize((32, 32), Image.Resampling.BICUBIC).crop((0, 8, 32, 24))
    np.testing.assert_array_equal(np.asarray(fitted), np.asarray(expected))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("stored", ["L", "RGB", "RGBA"])
def test_picture_is_read_with_the_channels_of_the_input(tmp_path, channels, mode, stored):
    source = picture(8, 8, mode=stored)
    source.save(tmp_path / "picture.png")
    pixels = read_picture(tmp_path / "picture.png", ImageSpec(shape=(channels, 8, 8)))
    expected = np.asarray(source.convert(mode)).reshape(8, 8, channels)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.moveaxis(expected, -1, 0))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_16_bits_are_scaled_to_8(tmp_path, channels, suffix):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    pixels = read_picture(tmp_path / f"deep.{suffix}", ImageSpec(shape=(channels, 8, 8)))
    assert (pixels == np.rint(values / 65535 * 255)).all()


def test_pictures_of_16_bits_in_the_other_byte_order_are_read(tmp_path):
    values = np.full((8, 8), 0x0180, ">u2")
    Image.frombytes("I;16B", (8, 8), values.tobytes()).save(tmp_path / "deep.tif")
    # 384 / 257, rounded
    assert (read_picture(tmp_path / "deep.tif", ImageSpec(shape=(1, 8, 8))) == 1).all()


@pytest.mark.parametrize(("dtype", "says"), [(np.float32, "floats"), (np.int32, "integers of 32 bits")])
def test_pictures_whose_values_have_no_known_range_are_refused(tmp_path, dtype, says):
    Image.fromarray(np.ones((8, 8), dtype)).save(tmp_path / "deep.tif")
    with pytest.raises(InputError, match=f"it holds {says}; give pictures of 8 or 16 bits, or an .npz with `features`"):
        read_picture(tmp_path / "deep.tif", ImageSpec(shape=(1, 8, 8)))


def test_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"picture.png cannot be read as a picture with 3 channels"):
        read_picture(tmp_path / "picture.png", SPEC)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_picture_is_named(tmp_path, damage):
    stream = io.BytesIO()
    picture(64, 64).save(stream, "png")
    content = bytearray(stream.getvalue())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[37:41] = b"\0\0\0\0"  # the name of the chunk that holds the pixels
    (tmp_path / "picture.png").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"picture.png cannot be read as a picture"):
        read_picture(tmp_path / "picture.png", SPEC)


def test_number_of_channels_that_no_picture_has_is_refused(tmp_path):
    png(tmp_path / "picture.png")
    with pytest.raises(InputError, match="cannot be read as a picture with 2 channels"):
        read_picture(tmp_path / "picture.png", ImageSpec(shape=(2, 8, 8)))


# Folders


def test_labels_csv_gives_files_and_labels_in_its_order(tmp_path):
    pixels = [png(tmp_path / f"{name}.png", seed) for seed, name in enumerate("cab")]
    (tmp_path / "labels.csv").write_text("file,label,comment\nb.png,7,x\nc.png,0,\na.png,7,\n")
    data = load_data(tmp_path, NORMALIZED, labelled=True)
    assert len(data) == 3
    assert data.labels.tolist() == [7, 0, 7]
    expected = NORMALIZED.from_uint8(np.stack([pixels[2], pixels[0], pixels[1]]))
    np.testing.assert_array_equal(all_inputs(data), expected)


def test_labels_csv_may_name_files_in_folders(tmp_path):
    pixels = png(tmp_path / "deep" / "er" / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\ndeep/er/a.png,1\n")
    np.testing.assert_array_equal(all_inputs(load_data(tmp_path, SPEC, labelled=True))[0] * 255, pixels)


def test_folder_per_class_is_numbered_alphabetically(tmp_path):
    expected = {}
    for seed, name in enumerate(["dog/2.png", "dog/1.jpg.png", "cat/9.png", "emu/deep/5.png"]):
        expected[name] = png(tmp_path / name, seed)
    (tmp_path / "readme.txt").write_text("not a class")
    (tmp_path / "cat" / "readme.txt").write_text("not a picture")
    data = load_data(tmp_path, SPEC, labelled=True)
    assert data.labels.tolist() == [0, 1, 1, 2]
    assert [folder.name for folder in data.folders] == ["cat", "dog", "emu"]
    order = ["cat/9.png", "dog/1.jpg.png", "dog/2.png", "emu/deep/5.png"]
    np.testing.assert_array_equal(all_inputs(data), SPEC.from_uint8(np.stack([expected[name] for name in order])))


def test_there_is_a_folder_for_every_class(tmp_path):
    for name in ("bee/1.png", "cat/1.png", "emu/1.png"):
        png(tmp_path / name)
    data = load_data(tmp_path, SPEC, labelled=True)
    for classes in (2, 4):
        with pytest.raises(InputError, match=f"has 3 folders of classes .* and the network has {classes} classes"):
            check_folders(classes, data)
    check_folders(3, data)
    (tmp_path / "dog").mkdir()
    check_folders(4, load_data(tmp_path, SPEC, labelled=True))
    check_folders(4, load_data(tmp_path, SPEC, labelled=False))


@pytest.mark.parametrize("place", ["data", ".cache/data"])
def test_what_is_hidden_is_neither_a_class_nor_a_picture(tmp_path, place):
    for name in ("cat/1.png", "dog/2.png"):
        png(tmp_path / place / name)
    for name in (".ipynb_checkpoints/1.png", "cat/._1.png", "dog/.ipynb_checkpoints/2.png", ".top.png"):
        (tmp_path / place / name).parent.mkdir(exist_ok=True)
        (tmp_path / place / name).write_bytes(b"no picture")
    data = load_data(tmp_path / place, SPEC, labelled=True)
    check_folders(2, data)
    assert [path.name for path in data.source] == ["1.png", "2.png"]
    assert data.labels.tolist() == [0, 1]
    assert len(all_inputs(load_data(tmp_path / place, SPEC, labelled=False))) == 2


def test_labels_csv_may_name_what_is_hidden(tmp_path):
    png(tmp_path / ".a.png")
    (tmp_path / "labels.csv").write_text("file,label\n.a.png,1\n")
    assert len(all_inputs(load_data(tmp_path, SPEC, labelled=True))) == 1


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "bmp", "webp", "ppm", "tif", "tiff"])
def test_unlabelled_pictures_of_every_kind_are_found(tmp_path, suffix):
    picture(8, 8).save(tmp_path / f"a.{suffix}")
    data = load_data(tmp_path, SPEC, labelled=False)
    assert len(data) == 1
    assert data.labels is None
    assert all_inputs(data).shape == (1, 3, 8, 8)


def test_unlabelled_pictures_are_found_at_any_depth(tmp_path):
    for seed, name in enumerate(["top.png", "one/a.png", "one/two/b.png"]):
        png(tmp_path / name, seed)
    assert len(load_data(tmp_path, SPEC, labelled=False)) == 3


def test_batches_cover_everything_once_in_order(tmp_path):
    pixels = np.stack([png(tmp_path / f"{index}.png", index) for index in range(5)])
    data = load_data(tmp_path, SPEC, labelled=False)
    assert [len(batch) for batch in data.batches(2)] == [2, 2, 1]
    np.testing.assert_array_equal(all_inputs(data), SPEC.from_uint8(pixels))


def test_first_takes_examples_with_their_labels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(6))
    part = load_data(tmp_path / "data.npz", SPEC, labelled=True).first(2)
    assert len(part) == 2
    assert part.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(all_inputs(part), SPEC.from_uint8(images[:2]))


@pytest.mark.parametrize(("count", "chosen"), [(4, [0, 2, 5, 7]), (1, [0]), (10, range(10)), (99, range(10))])
def test_evenly_takes_examples_from_all_parts(tmp_path, count, chosen):
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(10))
    part = load_data(tmp_path / "data.npz", SPEC, labelled=True).evenly(count)
    assert part.labels.tolist() == list(chosen)
    np.testing.assert_array_equal(all_inputs(part), SPEC.from_uint8(images[list(chosen)]))


def test_evenly_takes_as_many_pictures_of_every_class(tmp_path):
    for name in (f"{label}/{index}.png" for label in "abcde" for index in range(6)):
        png(tmp_path / name)
    part = load_data(tmp_path, SPEC, labelled=False).evenly(10)
    assert part.labels is None
    assert [path.parent.name for path in part.source] == list("aabbccddee")
    assert all_inputs(part).shape == (10, 3, 8, 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,label\na.png,1\n", "has the columns name, label; it needs file,label"),
        ("file,class\na.png,1\n", "has the columns file, class; it needs file,label"),
        ("file,label\na.png\n", "line 2: the label is None; give a whole number"),
        ("file,label\na.png,1\na.png,cat\n", "line 3: the label is 'cat'; give a whole number"),
        ("file,label\na.png,1.5\n", "line 2: the label is '1.5'; give a whole number"),
        ("file,label\na.png," + "9" * 30 + "\n", "line 2: the label is '999"),
        ("file,label\na.png,1\nb.png,1\nc.png,2\n", "line 3: there is no file b.png, and 1 more are missing"),
        ("file,label\n,1\n", r"line 2: there is no file \(none is named\)"),
        ("file,label\n", "holds no examples; a folder holds pictures that end with .bmp"),
        ("", "has the columns none; it needs file,label"),
        (b"file,label\na.png,\xff\xfe\n", "labels.csv"),
    ],
)
def test_bad_labels_csv_is_explained(tmp_path, content, message):
    png(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        load_data(tmp_path, SPEC, labelled=True)


def test_labels_that_a_spreadsheet_wrote_are_read(tmp_path):
    png(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png, 3\n", encoding="utf-8-sig")
    assert load_data(tmp_path, SPEC, labelled=True).labels.tolist() == [3]


def test_features_of_small_integers_are_taken_as_they_are(tmp_path):
    np.savez(tmp_path / "data.npz", features=np.full((2, 3, 8, 8), 7, np.uint8))
    assert (all_inputs(load_data(tmp_path / "data.npz", SPEC, labelled=False)) == 7).all()


def test_missing_data_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no data at .*nothing"):
        load_data(tmp_path / "nothing", SPEC, labelled=False)


def test_folder_without_labels_says_how_to_label(tmp_path):
    png(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"has no labels; add labels.csv with columns file,label, or `labels`"):
        load_data(tmp_path, SPEC, labelled=True)


@pytest.mark.parametrize("labelled", [False, True])
def test_folder_without_pictures_is_refused(tmp_path, labelled):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match="holds no examples"):
        load_data(tmp_path, SPEC, labelled=labelled)


def test_pictures_for_a_network_of_features_are_refused(tmp_path):
    png(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"holds pictures, but the network takes features; give an .npz"):
        load_data(tmp_path, FEATURES, labelled=False)


# .npz


def test_npz_images_are_normalized(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.array([3, 1, 4, 1, 5], dtype=np.uint8))
    data = load_data(tmp_path / "data.npz", NORMALIZED, labelled=True)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (NORMALIZED.mean, NORMALIZED.std))
    np.testing.assert_allclose(all_inputs(data), (images / 255 - mean) / std, atol=1e-5)
    assert all_inputs(data).dtype == np.float32
    assert data.labels.tolist() == [3, 1, 4, 1, 5]
    assert data.labels.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_npz_features_are_fed_as_they_are(tmp_path, dtype):
    spec = ImageSpec(shape=(1, 4, 5), mean=(3.0,), std=(2.0,), bounds=(-130.0, 30.0))
    features = np.random.default_rng(0).normal(size=(5, 1, 4, 5)).astype(dtype)
    np.savez(tmp_path / "data.npz", features=features)
    data = load_data(tmp_path / "data.npz", spec, labelled=False)
    assert data.labels is None
    assert all_inputs(data).dtype == np.float32
    np.testing.assert_array_equal(all_inputs(data), features.astype(np.float32))


@pytest.mark.parametrize("bounds", [(0.0, 255.0), (-1.0, 1.0)])
def test_pixels_for_inputs_of_other_bounds_are_refused(tmp_path, bounds):
    images = np.full((4, 3, 8, 8), 200, np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    np.savez(tmp_path / "features.npz", features=images)
    spec = ImageSpec(shape=(3, 8, 8), bounds=bounds)
    with pytest.raises(InputError, match=r"holds `images`, but .* are not 8-bit pictures; give `features`, the float"):
        load_data(tmp_path / "images.npz", spec, labelled=False)
    assert (all_inputs(load_data(tmp_path / "features.npz", spec, labelled=False)) == 200).all()


def test_small_integers_are_pixels_only_of_inputs_that_are_pictures(tmp_path):
    spec = JointSpec.of([NORMALIZED, ImageSpec(shape=(4,), bounds=(-3.0, 3.0))])
    pixels = np.full((2, 3, 8, 8), 51, np.uint8)
    np.savez(tmp_path / "data.npz", input0=pixels, input1=np.full((2, 4), 2, np.uint8))
    picture, vector = spec.split(all_inputs(load_data(tmp_path / "data.npz", spec, labelled=False)))
    np.testing.assert_array_equal(picture, NORMALIZED.from_uint8(pixels))
    assert (vector == 2).all()


IMAGES = np.zeros((2, 3, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGES}, "holds pictures; it needs `images` \\(uint8\\) or `features`"),
        ({}, "holds nothing; it needs `images`"),
        ({"images": IMAGES.astype(np.float32)}, "`images` in .* is float32; store uint8 pixels"),
        ({"images": IMAGES.transpose(0, 2, 3, 1)}, r"shape \(8, 8, 3\), the network takes \(3, 8, 8\)"),
        ({"images": IMAGES[:, 0]}, r"shape \(8, 8\), the network takes \(3, 8, 8\)"),
        ({"images": IMAGES, "labels": np.arange(3)}, "holds 2 examples but 3 labels"),
        ({"images": IMAGES}, "has no labels"),
        ({"features": IMAGES[:0].astype(np.float32), "labels": np.arange(0)}, "holds no examples"),
        ({"features": IMAGES.astype(str), "labels": np.arange(2)}, "`features` in .* is <U.*; store numbers"),
        ({"features": IMAGES.astype(complex), "labels": np.arange(2)}, "`features` in .* is complex128; store numbers"),
        ({"images": IMAGES[:0], "labels": np.arange(0)}, "holds no examples"),
        ({"images": IMAGES, "labels": np.array(["cat", "dog"])}, "labels"),
        ({"images": IMAGES, "labels": np.zeros((2, 10))}, "labels"),
        ({"images": IMAGES, "labels": np.array(5)}, "labels"),
        ({"images": np.array([None, {}], dtype=object)}, "is not a readable .npz file"),
    ],
    ids=[
        "no-images",
        "empty",
        "float-images",
        "channels-last",
        "no-channels",
        "label-count",
        "no-labels",
        "no-features",
        "text-features",
        "complex-features",
        "no-examples",
        "label-names",
        "one-hot",
        "one-label",
        "objects",
    ],
)
def test_bad_npz_is_explained(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_data(tmp_path / "data.npz", SPEC, labelled=True)


def cut_npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, images=IMAGES)
    return stream.getvalue()[:300]


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, IMAGES)
    return stream.getvalue()


@pytest.mark.parametrize("content", [b"rubbish", b"", cut_npz(), npy()], ids=["rubbish", "empty", "cut", "npy"])
def test_file_that_is_no_npz_is_named(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"data.npz is not a readable .npz file"):
        load_data(tmp_path / "data.npz", SPEC, labelled=False)
