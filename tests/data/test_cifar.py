import os
import pickle
import struct

import numpy as np
import pytest
import torch
from damage import mutants, read_or_refused
from written import binary, examples

from lotterykit.data.cifar import CIFAR10, CIFAR100, read_binary, read_pickled
from lotterykit.errors import ArgumentError

KINDS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def python2(x, y):
    """A batch as the published files are: Python 2's cPickle, protocol 2, numpy 1."""
    labels = b"".join(b"K" + bytes([label]) for label in y)
    shape = b"K" + bytes([len(x)]) + b"M" + struct.pack("<H", 3072) + b"\x86q\x09"
    dtype = b"cnumpy\ndtype\nq\x0aU\x02u1q\x0bK\x00K\x01\x87q\x0cRq\x0d"
    state = b"(K\x03U\x01|q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05("
        + labels
        + b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
        + b"K\x00\x85U\x01b\x87Rq\x10(K\x01" + shape + dtype + state
        + b"\x89T" + struct.pack("<I", x.size) + x.tobytes() + b"tbu."
    )  # fmt: skip


def same(read, x, y):
    assert read[0].dtype == torch.uint8
    assert (read[0].numpy() == x.reshape(-1, 3, 32, 32)).all()
    assert read[1].dtype == torch.int64
    assert read[1].tolist() == y


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("count", [1, 5])
def test_binary_layout(tmp_path, kind, count):
    x, y = examples(count, kind.classes)
    path = tmp_path / "batch.bin"
    path.write_bytes(binary(x, y, kind))
    same(read_binary(path, kind, 5), x, y)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("keys", [str, str.encode])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_layout_of_every_protocol(tmp_path, kind, keys, protocol):
    x, y = examples(3, kind.classes)
    path = tmp_path / "batch"
    names = ["a.png", "b.png", "c.png"]
    path.write_bytes(
        pickle.dumps({keys("data"): x, keys(kind.labels): y, keys("filenames"): names}, protocol)
    )
    same(read_pickled(path, kind, 3), x, y)


def test_the_published_python_2_pickle(tmp_path):
    x, y = examples(4)
    path = tmp_path / "data_batch_1"
    path.write_bytes(python2(x, y))
    oracle = pickle.loads(python2(x, y), encoding="latin1")
    assert (oracle["data"] == x).all()
    assert oracle["labels"] == y
    same(read_pickled(path, CIFAR10, 10_000), x, y)


def test_columns_first_and_older_names(tmp_path):
    x, y = examples(3)
    path = tmp_path / "batch"
    for protocol in (2, 5):
        data = pickle.dumps({"data": np.asfortranarray(x), "labels": y}, protocol)
        for old in (data, data.replace(b"numpy._core", b"numpy.core").replace(b"\x8c\x16", b"\x8c\x15")):
            path.write_bytes(old if protocol == 2 else data)
            same(read_pickled(path, CIFAR10, 3), x, y)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["batch", "data", "labels", "filenames"])
def test_a_malicious_pickle_is_refused_by_name_and_does_not_run(tmp_path, protocol, place):
    marker = tmp_path / "marker"
    x, y = examples(2)
    evil = Malicious(os.system, f"touch {marker}")
    batch = {"data": x, "labels": y, "filenames": ["a", "b"]}
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(evil if place == "batch" else batch | {place: evil}, protocol))
    with pytest.raises(
        ArgumentError, match=rf"{path}: the pickle asks for '\w+\.system', which is never loaded"
    ):
        read_pickled(path, CIFAR10, 2)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the pickle does run where it is unpickled"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"cbuiltins\neval\n.", "'builtins.eval'"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "'numpy.ndarray.tofile'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"'os\.system'"),
        (b"\x80\x02\x82\x01.", "the operation EXT1"),
        (b"Pname\n.", "the operation PERSID"),
        (b"(ios\nsystem\n.", "the operation INST"),
        (b"(cnumpy\ndtype\no.", "the operation OBJ"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "the operation NEWOBJ"),
        (b"G" + bytes(8) + b".", "the operation BINFLOAT"),
        (b"", "damaged pickle"),
        (b"}", "damaged pickle"),
        (b"}.}", "damaged pickle"),
        (b"].", "found a pickled list, expected a dict"),
        (b"e.", "damaged pickle"),
        (b"R.", "damaged pickle"),
        (b"}}R.", "damaged pickle"),
        (b"}(K\x01K\x02u.", "damaged pickle"),
        (b"}(K\x01u.", "damaged pickle"),
        (b"}K\x01b.", "damaged pickle"),
        (b"K\x01K\x01\x93.", "damaged pickle"),
        (b"h\x07.", "damaged pickle"),
        (b"}.", "found no 'data' and no 'labels'"),
        (b"}(U\x04dataK\x01U\x06labels]u.", "no pickled numpy array of dtype uint8"),
    ],
)
def test_foreign_and_broken_pickles(tmp_path, data, says):
    path = tmp_path / "batch"
    path.write_bytes(data)
    with pytest.raises(ArgumentError, match=says) as caught:
        read_pickled(path, CIFAR10, 2)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": [0, 10]}, "found label 10 at 1, expected 0 to 9"),
        ({"labels": [-1, 3]}, "found label -1 at 0"),
        ({"labels": [1]}, "found 1 labels, expected 2"),
        ({"labels": [1, 2, 3]}, "found 3 labels, expected 2"),
        ({"labels": [1, True]}, "no list of small integers"),
        ({"labels": [1, 10**30]}, "no list of small integers"),
        ({"labels": (1, 2)}, "no list of small integers"),
        ({"labels": np.array([1, 2], dtype=np.uint8)}, "no list of small integers"),
        ({"data": np.zeros((2, 3071), np.uint8)}, r"data of shape \[2, 3071\], expected \[1 to 2, 3072\]"),
        ({"data": np.zeros((3, 3072), np.uint8)}, r"data of shape \[3, 3072\]"),
        ({"data": np.zeros((0, 3072), np.uint8)}, r"data of shape \[0, 3072\]"),
        ({"data": np.zeros((2, 3072), np.int8)}, "dtype uint8"),
        ({"data": np.zeros((2, 3072), object)}, "dtype uint8"),
        ({"data": "text"}, "dtype uint8"),
        ({"data": bytes(2 * 3072)}, "dtype uint8"),
        ({"filenames": ["x" * 20_000]}, "found more than 16896 bytes, expected a batch of at most 2 images"),
    ],
)
def test_pickled_batches_with_wrong_contents(tmp_path, change, says):
    x, y = examples(2)
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": x, "labels": y} | change, 4))
    with pytest.raises(ArgumentError, match=says) as caught:
        read_pickled(path, CIFAR10, 2)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "bomb",
    [
        b"}r\xff\xff\xff\x7f.",  # a memo of 2**31 places
        b"}p9999999999\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",  # bytes of 2**40
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",  # a frame of 2**60
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",  # an integer of 2**31 bytes
        # an array of 10**12 bytes
        b"}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L1000000000000L\ntU\x01btRU\x06labels]u.",
        # a list that holds itself, eight times over, to be printed or compared
        b"}(U\x04data]q\x01(h\x01h\x01h\x01h\x01h\x01h\x01h\x01h\x01eU\x06labelsh\x01u.",
    ],
)
def test_bombs_allocate_nothing(tmp_path, bomb):
    path = tmp_path / "batch"
    path.write_bytes(bomb)
    assert isinstance(read_or_refused(lambda p: read_pickled(p, CIFAR10, 10), path), ArgumentError)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("cut", "found"), [(0, "0"), (100, "100"), (-1, "9218|9221")])
def test_binary_files_cut_short(tmp_path, kind, cut, found):
    path = tmp_path / "batch.bin"
    path.write_bytes(binary(*examples(3), kind)[:cut])
    with pytest.raises(
        ArgumentError, match=rf"{path}: found ({found}) bytes .* 1 to 3 images of 307[34] bytes"
    ):
        read_binary(path, kind, 3)


def test_binary_files_too_long_and_labels_out_of_range(tmp_path):
    path = tmp_path / "batch.bin"
    path.write_bytes(binary(*examples(4)))
    with pytest.raises(ArgumentError, match="found more than 9219 bytes"):
        read_binary(path, CIFAR10, 3)
    path.write_bytes(binary(examples(2)[0], [3, 10]))
    with pytest.raises(ArgumentError, match=f"{path}: found label 10 at 1, expected 0 to 9"):
        read_binary(path, CIFAR10, 3)


def files():
    x, y = examples(2)
    yield "binary", binary(x, y), read_binary
    yield "python2", python2(x, y), read_pickled
    for protocol in (0, 2, 4, 5):
        yield f"pickle{protocol}", pickle.dumps({"data": x, "labels": y}, protocol), read_pickled


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "data", "read"), list(files()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_mutants_are_refused_or_read(tmp_path, name, data, read):
    path = tmp_path / name
    # nearly all of a pickle is pixels: mutants of its last bytes and of the words around them too
    words = [*mutants(data, 200, 1), *(data[:-64] + end for end in mutants(data[-64:], 100, 2))]
    outcomes = set()
    for mutant in words:
        path.write_bytes(mutant)
        result = read_or_refused(lambda p: read(p, CIFAR10, 10), path)
        outcomes.add(type(result))
        if isinstance(result, tuple):
            x, y = result
            assert x.shape[1:] == (3, 32, 32)
            assert len(x) == len(y) > 0
            assert 0 <= int(y.min()) <= int(y.max()) <= 9
    assert outcomes == {ArgumentError, tuple}


@pytest.mark.parametrize("start", [b"\x80\x02", b""])
@pytest.mark.parametrize("operation", [b"]", b"}", b"(", b"N", b"]q\x01"])
def test_a_pickle_of_many_small_objects_is_refused_while_it_is_followed(tmp_path, start, operation):
    """Each byte would become an object of 60 bytes and more."""
    path = tmp_path / "batch"
    path.write_bytes(start + operation * (60_000 // len(operation)))
    error = read_or_refused(lambda p: read_pickled(p, CIFAR10, 10), path, most=3 << 20)
    assert "more than 10160 operations" in str(error)
