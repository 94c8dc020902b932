import gzip
import math
import struct

import numpy as np
import pytest
import torch
from damage import mutants, read_or_refused
from written import idx, images_and_labels

from lotterykit.data.idx import mnist_folder, read_idx, read_pair
from lotterykit.errors import ArgumentError


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("shape", [(5,), (1,), (7, 3), (4, 28, 28)])
def test_what_was_written_is_read(tmp_path, pack, shape):
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "any-name"
    path.write_bytes(pack(idx(array)))
    read = read_idx(path, item=shape[1:], most=shape[0])
    assert read.dtype == torch.uint8
    assert (read.numpy() == array).all()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"found the magic number nothing, expected 0x00000803"),
        (b"\x00\x00\x08", r"found the magic number 0x000008,"),
        (b"\x00\x00\x08\x01" + bytes(8), r"found the magic number 0x00000801, expected 0x00000803"),
        (b"\x00\x00\x0d\x03" + bytes(12), r"found the magic number 0x00000d03"),
        (b"\x89PNG" + bytes(12), r"found the magic number 0x89504e47"),
        (b"\x00\x00\x08\x03" + bytes(5), r"cut short: found 9 bytes of header, expected 16"),
        (struct.pack(">4I", 0x803, 2, 3, 3), r"found items of 3 x 3, expected 2 x 3"),
        (struct.pack(">4I", 0x803, 0, 2, 3), r"found 0 items in its header, expected 1 to 9"),
        (struct.pack(">4I", 0x803, 10, 2, 3), r"found 10 items in its header, expected 1 to 9"),
        (struct.pack(">4I", 0x803, 9, 2, 3) + bytes(53), r"cut short: found 53 bytes of items, expected 54"),
        (struct.pack(">4I", 0x803, 9, 2, 3) + bytes(55), r"longer .* found more bytes of items, expected 54"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_every_fault_is_one_line_that_names_the_file(tmp_path, data, says, pack):
    path = tmp_path / "some-idx3-ubyte"
    path.write_bytes(pack(data))
    with pytest.raises(ArgumentError, match=says) as caught:
        read_idx(path, item=(2, 3), most=9)
    assert str(caught.value).startswith(f"{path}: ")


def test_damaged_gzip_missing_files_and_what_is_no_file(tmp_path):
    whole = gzip.compress(idx(np.zeros((3, 2), np.uint8)))
    path = tmp_path / "x.gz"
    wrong_sum = bytearray(whole)
    wrong_sum[-5] ^= 1
    for damaged in (whole[:-3], whole[:14], bytes(wrong_sum), whole[:12] + b"\xff\xff" + whole[14:]):
        path.write_bytes(damaged)
        with pytest.raises(ArgumentError, match="damaged gzip data"):
            read_idx(path, item=(2,), most=3)
    with pytest.raises(ArgumentError, match="absent: cannot be read: No such file"):
        read_idx(tmp_path / "absent", item=(2,), most=3)
    with pytest.raises(ArgumentError, match="no regular file"):
        read_idx(tmp_path, item=(2,), most=3)


def test_labels_out_of_range_and_counts_that_differ(tmp_path):
    x, y = images_and_labels(6)
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(idx(x))
    labels.write_bytes(idx(y))
    read_x, read_y = read_pair(images, labels, item=(28, 28), classes=10, most=6)
    assert (read_x.numpy() == x).all()
    assert (read_y.numpy() == y).all()
    assert read_y.dtype == torch.int64
    labels.write_bytes(idx(y[:5]))
    with pytest.raises(
        ArgumentError, match=f"{labels}: found 5 labels, expected 6, one an image of {images}"
    ):
        read_pair(images, labels, item=(28, 28), classes=10, most=6)
    y[4] = 10
    labels.write_bytes(idx(y))
    with pytest.raises(ArgumentError, match=f"{labels}: found label 10 at 4, expected 0 to 9"):
        read_pair(images, labels, item=(28, 28), classes=10, most=6)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_header_that_lies_allocates_nothing(tmp_path, pack):
    path = tmp_path / "x"
    path.write_bytes(pack(struct.pack(">4I", 0x803, 2**31, 2**15, 2**15) + bytes(100)))
    error = read_or_refused(lambda p: read_idx(p, item=(2**15, 2**15), most=2**32), path)
    assert "found 100 bytes" in str(error)


def test_a_bomb_is_decompressed_no_further_than_its_header(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(struct.pack(">2I", 0x801, 50) + bytes(64 << 20)))
    error = read_or_refused(lambda p: read_idx(p, item=(), most=60_000), path)
    assert "longer than its header says" in str(error)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_mutants_are_refused_or_read_as_they_are(tmp_path, pack):
    x, _ = images_and_labels(3)
    path, outcomes = tmp_path / "x", set()
    for data in mutants(pack(idx(x)), 200, seed=len(pack(b""))):
        path.write_bytes(data)
        result = read_or_refused(lambda p: read_idx(p, item=(28, 28), most=10), path)
        outcomes.add(type(result))
        if isinstance(result, torch.Tensor):
            plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            assert idx(result.numpy()) == plain
    assert ArgumentError in outcomes


def test_the_real_fashion_mnist(fashion_mnist):
    x, y, x_test, y_test = mnist_folder(fashion_mnist)
    assert x.shape == (60_000, 1, 28, 28)
    assert x_test.shape == (10_000, 1, 28, 28)
    assert y.bincount().tolist() == [6_000] * 10
    assert y_test.bincount().tolist() == [1_000] * 10
    pixels = x.numpy().astype(np.float64) / 255
    assert math.isclose(pixels.mean(), 0.2860405969887955, abs_tol=1e-12)  # as published with the data
    assert math.isclose(pixels.std(), 0.35302424451492237, abs_tol=1e-9)
    assert y[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]


def test_the_real_file_cut_short(fashion_mnist, tmp_path):
    name = "t10k-images-idx3-ubyte"
    whole = next(path for path in fashion_mnist.iterdir() if path.name.startswith(name)).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArgumentError, match=f"{name}: (cut short|damaged gzip data)"):
        read_idx(path, item=(28, 28), most=10_000)
