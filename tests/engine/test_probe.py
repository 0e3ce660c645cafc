"""Probe files are read as they are, matched to the model's inputs, and every conversion is said."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from cipm.errors import ProbeError
from cipm.load.probe import open_probe
from cipm.load.probe_match import fits, reshapes
from cipm.trace.graph import Input

DATA = Path(__file__).parents[2] / "../shared/data/datasets"
VECTOR = Input("x", ("batch", 4), torch.float32)
IMAGE = Input("image", ("batch", 1, 28, 28), torch.float32)
TOKENS = Input("input_ids", ("batch", "seq"), torch.int64)
MASK = Input("attention_mask", ("batch", "seq"), torch.int64)


def save(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "probe.npz", **arrays)
    return folder / "probe.npz"


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_npz_is_read_bit_for_bit_by_exact_name(tmp_path):
    x, y = floats(6, 4), np.arange(6)
    probe = open_probe(save(tmp_path, x=x, y=y), [VECTOR], max_rows=100)
    assert np.array_equal(probe.inputs["x"].numpy(), x) and probe.inputs["x"].dtype == torch.float32
    assert probe.labels.tolist() == y.tolist() and probe.labels.dtype == torch.int64
    assert (probe.rows, probe.used_rows, probe.notes) == (6, 6, ())


@pytest.mark.parametrize("suffix", ["npy", "npz", "compressed.npz", "safetensors", "csv"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    x, path = floats(50, 4), tmp_path / f"probe.{suffix}"
    match suffix:
        case "npy":
            np.save(path, x)
        case "npz":
            np.savez(path, x=x)
        case "compressed.npz":
            np.savez_compressed(path, x=x)
        case "safetensors":
            save_file({"x": torch.from_numpy(x)}, path)
        case "csv":
            np.savetxt(path, x, delimiter=",", fmt="%.9g")
    probe = open_probe(path, [VECTOR], max_rows=20)
    assert np.array_equal(probe.inputs["x"].numpy(), x[np.arange(20) * 50 // 20])
    assert (probe.rows, probe.used_rows) == (50, 20) and "20 of 50 rows are used, evenly spaced." in probe.notes


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.sampled_from(["C", "F"]), st.sampled_from(["<f4", ">f4", "<f8", "<f2"]))
def test_rows_are_evenly_spaced_for_any_count_order_and_byte_order(tmp_path_factory, rows, most, order, kind):
    x = np.asarray(np.random.default_rng(rows).normal(size=(rows, 4)).astype(kind), order=order)
    probe = open_probe(save(tmp_path_factory.mktemp("p"), x=x), [VECTOR], max_rows=most)
    used = min(rows, most)
    assert np.array_equal(probe.inputs["x"].numpy(), x[np.arange(used) * rows // used].astype("f4"))


def test_rows_of_a_long_npz_are_found_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("cipm.load.probe_files.CHUNK", 100)
    x = floats(1000, 4)
    probe = open_probe(save(tmp_path, x=x), [VECTOR], max_rows=333)
    assert np.array_equal(probe.inputs["x"].numpy(), x[np.arange(333) * 1000 // 333])


def test_images_get_their_axis_and_scale_and_say_so(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    probe = open_probe(save(tmp_path, x_test=pixels, y_test=np.arange(5, dtype=np.uint8), x_train=pixels[:3]), [IMAGE],
                       max_rows=9)
    assert torch.equal(probe.inputs["image"], torch.from_numpy(pixels[:, None].astype("f4") / np.float32(255)))
    assert probe.labels.tolist() == [0, 1, 2, 3, 4]
    assert probe.notes == ("'x_test' is used as the model's input 'image'.", "Left out: 'x_train' [3, 28, 28] uint8.",
                           "'x_test': rows reshaped from [28, 28] to [1, 28, 28].",
                           "'x_test': uint8 converted to float32 and divided by 255.")


def test_flat_integers_are_not_scaled_and_say_so(tmp_path):
    x = np.arange(8, dtype=np.uint8).reshape(2, 4)
    probe = open_probe(save(tmp_path, x=x), [VECTOR], max_rows=9)
    assert probe.inputs["x"].tolist() == x.tolist()
    assert probe.notes == ("'x': uint8 converted to float32 without scaling.",)


def test_channels_last_are_moved_first(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    spec = Input("x", ("batch", 3, 8, 6), torch.float32)
    probe = open_probe(save(tmp_path, images=pixels), [spec], max_rows=9)
    assert torch.equal(probe.inputs["x"], torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    assert "'images': channels moved from last to first, [8, 6, 3] to [3, 8, 6]." in probe.notes


def test_a_flat_row_for_several_planes_is_refused(tmp_path):
    with pytest.raises(ProbeError, match="fits the model's input"):
        open_probe(save(tmp_path, columns=floats(2, 144)), [Input("x", ("b", 3, 8, 6), torch.float32)], max_rows=9)


def test_two_inputs_by_name_and_by_unique_shape(tmp_path):
    ids, mask = np.arange(12).reshape(3, 4), np.ones((3, 4), np.int32)
    by_name = open_probe(save(tmp_path, attention_mask=mask, input_ids=ids), [TOKENS, MASK], max_rows=9)
    assert by_name.inputs["input_ids"].tolist() == ids.tolist()
    assert by_name.inputs["attention_mask"].dtype == torch.int64
    left, right = Input("left", ("b", 3), torch.float32), Input("right", ("b", 5), torch.float32)
    by_shape = open_probe(save(tmp_path, p=floats(2, 5), q=floats(2, 3)), [left, right], max_rows=9)
    assert {name: tuple(t.shape) for name, t in by_shape.inputs.items()} == {"left": (2, 3), "right": (2, 5)}


def test_two_columns_that_fit_equally_are_refused(tmp_path):
    with pytest.raises(ProbeError, match="More than one column"):
        open_probe(save(tmp_path, p=floats(2, 4), q=floats(2, 4)), [VECTOR], max_rows=9)


def test_one_named_size_has_one_value(tmp_path):
    path = save(tmp_path, input_ids=np.zeros((2, 4), int), attention_mask=np.ones((2, 5), int))
    with pytest.raises(ProbeError, match="The size 'seq' is 4 in the probe's 'input_ids' and 5 in 'attention_mask'"):
        open_probe(path, [TOKENS, MASK], max_rows=9)


def test_a_fixed_batch_of_the_model_does_not_bind_the_rows(tmp_path):
    probe = open_probe(save(tmp_path, x=floats(7, 4)), [Input("x", (32, 4), torch.float32)], max_rows=9)
    assert probe.inputs["x"].shape == (7, 4)


def test_whole_floats_are_taken_for_integers_and_fractions_refused(tmp_path):
    probe = open_probe(save(tmp_path, input_ids=np.array([[1.0, 2.0]])), [TOKENS], max_rows=9)
    assert probe.inputs["input_ids"].tolist() == [[1, 2]]
    assert probe.notes == ("'input_ids': float64 converted to int64.",)
    with pytest.raises(ProbeError, match="holds fractions, the first in row 0"):
        open_probe(save(tmp_path, input_ids=np.array([[1.5, 2.0]])), [TOKENS], max_rows=9)


def test_values_beyond_the_models_dtype_are_refused(tmp_path):
    with pytest.raises(ProbeError, match="beyond 6.55e\\+04 in row 1"):
        open_probe(save(tmp_path, x=np.array([[0.0] * 4, [1e6] * 4])), [Input("x", ("b", 4), torch.float16)], max_rows=9)
    with pytest.raises(ProbeError, match="holds 0 to 300; the model's uint8 holds 0 to 255"):
        open_probe(save(tmp_path, x=np.array([[0, 1, 2, 300]])), [Input("x", ("b", 4), torch.uint8)], max_rows=9)


def test_csv_with_header_labels_in_words_and_semicolons(tmp_path):
    path = tmp_path / "table"
    path.write_text("\ufeffa;b;c;d;Class\n1;2;3;4;dog\n5;6;7;8;cat\n9;9;9;9;dog\n", encoding="utf-8")
    probe = open_probe(path, [VECTOR], max_rows=9)
    assert probe.inputs["x"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]] and probe.labels.tolist() == [1, 0, 1]
    assert "Labels 'class' are words, numbered in alphabetical order: 0 = cat, 1 = dog." in probe.notes


def test_csv_label_numbers_follow_the_rows_taken(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("label,a,b,c,d\n" + "".join(f"{i},{i},0,0,0\n" for i in range(100)))
    probe = open_probe(path, [VECTOR], max_rows=7)
    assert probe.labels.tolist() == probe.inputs["x"][:, 0].tolist() == [i * 100 // 7 for i in range(7)]


def test_csv_feeds_several_inputs_by_header(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("left[0],left[1],right_0,right_1,right_2\n1,2,3,4,5\n6,7,8,9,10\n")
    left, right = Input("left", ("b", 2), torch.float32), Input("right", ("b", 3), torch.float32)
    probe = open_probe(path, [left, right], max_rows=9)
    assert probe.inputs["right"].tolist() == [[3, 4, 5], [8, 9, 10]] and probe.inputs["left"].tolist() == [[1, 2], [6, 7]]


def test_fractional_labels_stay_numbers(tmp_path):
    probe = open_probe(save(tmp_path, x=floats(2, 4), y=np.array([0.5, 1.0])), [VECTOR], max_rows=9)
    assert probe.labels.dtype == torch.float32 and "Labels 'y' are numbers, not classes." in probe.notes


def image_zip(folder: Path, images: dict[str, Image.Image], **files: bytes) -> Path:
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name, image in images.items():
            data = io.BytesIO()
            image.save(data, "PNG")
            archive.writestr(name, data.getvalue())
        for name, content in files.items():
            archive.writestr(name, content)
    return folder / "images.zip"


def test_zip_of_images_with_class_folders(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    path = image_zip(tmp_path, {f"set/{name}/{i}.png": Image.fromarray(grey[i])
                                for i, name in enumerate(("cat", "cat", "dog"))}, readme=b"hello")
    probe = open_probe(path, [IMAGE], max_rows=9)
    assert torch.equal(probe.inputs["image"], torch.from_numpy(grey[:, None].astype("f4") / np.float32(255)))
    assert probe.labels.tolist() == [0, 0, 1]
    assert probe.notes == (
        "Images are read as L; no mean or deviation is taken off beyond the scaling.",
        "1 files of the zip are not images and were left out.",
        "'image': uint8 converted to float32 and divided by 255.",
        "Labels 'labels' are words, numbered in alphabetical order: 0 = cat, 1 = dog.")


def test_images_are_brought_to_the_models_size_and_digits_name_classes(tmp_path):
    path = image_zip(tmp_path, {"7/a.png": Image.new("L", (10, 20), 51), "3/b.png": Image.new("RGB", (4, 4), (51, 0, 0))})
    probe = open_probe(path, [Input("x", ("b", 3, 8, 8), torch.float32)], max_rows=9)
    assert probe.inputs["x"].shape == (2, 3, 8, 8) and probe.labels.tolist() == [3, 7]
    assert torch.allclose(probe.inputs["x"][1], torch.full((3, 8, 8), 0.2))
    assert any(note.startswith("2 images were resized (bilinear)") for note in probe.notes)


def test_images_feed_a_flat_input_and_one_of_open_size(tmp_path):
    path = image_zip(tmp_path, {"a.png": Image.new("L", (28, 28), 255), "b.png": Image.new("L", (28, 28), 0)})
    flat = open_probe(path, [Input("x", ("b", 784), torch.float32)], max_rows=9)
    assert flat.inputs["x"].sum(1).tolist() == [784.0, 0.0] and flat.labels is None
    free = open_probe(path, [Input("x", ("b", 1, "height", "width"), torch.float32)], max_rows=9)
    assert free.inputs["x"].shape == (2, 1, 28, 28)


def test_bfloat16_safetensors(tmp_path):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"x": x}, tmp_path / "p.safetensors")
    assert torch.equal(open_probe(tmp_path / "p.safetensors", [VECTOR], max_rows=9).inputs["x"], x.float())


def test_real_mnist():
    path = DATA / "mnist.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    probe = open_probe(path, [Input("x", ("batch", 784), torch.float32)], max_rows=1000)
    with np.load(path) as file:
        taken = np.arange(1000) * 10
        assert torch.equal(probe.inputs["x"], torch.from_numpy(file["x_test"][taken].reshape(1000, 784)) / 255)
        assert probe.labels.tolist() == file["y_test"][taken].tolist()


dims = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@given(dims, dims)
def test_reshape_is_symmetric_and_keeps_the_elements(ours, theirs):
    assert reshapes(ours, theirs) == reshapes(theirs, ours)
    if reshapes(ours, theirs):
        assert np.prod(ours) == np.prod(theirs)
    if fits(ours, theirs):
        assert reshapes(ours, theirs)
