"""Files of torch.save that would take more memory than they have bytes."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.nn.checkpoints import load_checkpoint_, read_masks
from lotterykit.nn.torch_files import check_file


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(content, new=True):
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=new)
    return out.getvalue()


def packed(data, change):
    """The archive `data` with its records as `change` makes them: [(name, content)]."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as written:
        for name, content, kind in change([(n, archive.read(n)) for n in archive.namelist()]):
            written.writestr(zipfile.ZipInfo(name), content, compress_type=kind)
    return out.getvalue()


def refused(path, data, says):
    path.write_bytes(data)
    for read in (read_masks, lambda p: load_checkpoint_(nn.Sequential(nn.Linear(2, 2)), p)):
        with pytest.raises(ArgumentError, match=says) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [True, False])
def test_a_call_that_allocates_what_it_is_told(tmp_path, new):
    path = tmp_path / "x.pt"
    data = saved({"0.weight": Call(bytearray, 10**13)}, new)
    refused(path, data, "names __builtin__ bytearray, which no checkpoint needs")
    refused(path, saved({"0.weight": Call(torch.FloatTensor, 10**13)}, new), "names torch FloatTensor")


def test_records_that_inflate(tmp_path):
    data = saved({"0.weight": torch.ones(1 << 22)})

    def deflated(records):
        return [(name, content, zipfile.ZIP_DEFLATED) for name, content in records]

    small = packed(data, deflated)
    assert len(small) < len(data) / 100
    refused(tmp_path / "x.pt", small, "compressed records")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_records_of_one_name(tmp_path):
    def twice(records):
        return [
            (n.upper() if i else n, c, zipfile.ZIP_STORED) for r in records for i, (n, c) in enumerate((r, r))
        ]

    refused(tmp_path / "x.pt", packed(saved({"a": torch.ones(2)}), twice), "two records of one name")


@pytest.mark.parametrize("new", [True, False])
def test_a_view_that_repeats_one_number(tmp_path, new):
    data = saved({"0.weight_mask": torch.ones(1).expand(1 << 20, 1 << 20)}, new)
    refused(tmp_path / "x.pt", data, "more than 4 times the file's")


@pytest.mark.parametrize(
    "data",
    [
        b"X\xff\xff\xff\xff",
        b"T\xff\xff\xff\x7f",
        b"\x80\x02\x8b\xff\xff\xff\x7f",
        b"",
        b"PK\3\4",
        b"PK\3\4" * 99,
    ],
)
def test_lengths_beyond_the_file(tmp_path, data):
    refused(tmp_path / "x.pt", data, "cannot read")


@pytest.mark.parametrize("name", ["pipe.pt", "pipe.safetensors"])
def test_what_is_no_regular_file(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ArgumentError, match="no regular file"):
        read_masks(tmp_path / name)


@pytest.mark.parametrize("new", [True, False])
def test_what_training_loops_save_is_let_through(tmp_path, new):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3).half())
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    content = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "lr": 0.1, "name": "x",
        "shape": torch.Size([1, 2]), "dtype": torch.float32, "device": torch.device("cpu"), "set": {1, 2},
        "parameter": nn.Parameter(torch.ones(2)), "tied": [model[0].weight, model[0].weight.T],
    }  # fmt: skip
    path = tmp_path / "x.pt"
    path.write_bytes(saved(content, new))
    check_file(path)
    assert torch.load(path, weights_only=True)["epoch"] == 3


def test_a_plain_pickle_is_refused(tmp_path):
    refused(tmp_path / "x.pt", pickle.dumps({"a": 1}), "cannot read")


@pytest.mark.parametrize("double", [b"h\x00h\x00\x86q\x00", b"2\x86q\x00", b"(h\x00h\x00tq\x00"])
def test_a_key_that_would_be_hashed_for_years(tmp_path, double):
    def with_a_bomb(records):
        bomb = b"\x80\x02}K\x01q\x00" + double * 60 + b"K\x01s."
        return [(n, bomb if n.endswith("data.pkl") else c, zipfile.ZIP_STORED) for n, c in records]

    data = packed(saved({"0.weight": torch.ones(2)}), with_a_bomb)
    refused(tmp_path / "x.pt", data, "a value of more than 10000000 objects")
