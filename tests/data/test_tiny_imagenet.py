import io

import numpy as np
import pytest
import torch
from damage import mutants, read_or_refused

from lotterykit.data.images import load
from lotterykit.data.tiny_imagenet import MOST, decoded, tiny_imagenet
from lotterykit.errors import ArgumentError

image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def jpeg(value, size=(64, 64), mode="RGB", form="JPEG"):
    out = io.BytesIO()
    image.new(mode, size, value).save(out, form)
    return out.getvalue()


COLOURS = {"n02": (255, 0, 0), "n01": (0, 255, 0), "n10": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for name, colour in COLOURS.items():
        (root / "train" / name / "images").mkdir(parents=True)
        for i in range(2):
            (root / "train" / name / "images" / f"{name}_{i}.JPEG").write_bytes(jpeg(colour))
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for i, (name, colour) in enumerate(COLOURS.items()):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(jpeg(colour))
        lines.append(f"val_{i}.JPEG\t{name}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_folders(folder):
    x, y, x_test, y_test = tiny_imagenet(folder)
    assert x.shape == (6, 3, 64, 64)
    assert x.dtype == torch.uint8
    assert y.tolist() == [0, 0, 1, 1, 2, 2]  # classes in the order of their names: n01, n02, n10
    assert y_test.tolist() == [1, 0, 2]
    for images, labels in ((x, y), (x_test, y_test)):
        colours = torch.tensor([COLOURS[name] for name in sorted(COLOURS)])[labels]
        assert (images.int() - colours[:, :, None, None]).abs().max() <= 2  # JPEG's own rounding
    data = load("tiny-imagenet", folder.parent)
    assert data.folder == folder
    assert torch.equal(data.split[1], y)


def test_grey_images_get_three_channels(tmp_path):
    path = tmp_path / "grey.JPEG"
    path.write_bytes(jpeg(99, mode="L"))
    assert torch.equal(decoded([path]), torch.full((1, 3, 64, 64), 99, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "found no JPEG image"),
        (b"text", "found no JPEG image"),
        (jpeg((1, 2, 3), form="PNG"), "found no JPEG image"),
        (jpeg((1, 2, 3), size=(64, 63)), "found 64 x 63 pixels, expected 64 x 64"),
        (jpeg((1, 2, 3))[:-200], "damaged JPEG image"),
    ],
)
def test_bad_images(tmp_path, data, says):
    path = tmp_path / "x.JPEG"
    path.write_bytes(data)
    with pytest.raises(ArgumentError, match=f"{path}: {says}"):
        decoded([path])


def test_bad_folders(folder):
    annotations = folder / "val" / "val_annotations.txt"
    for text, says in (
        (b"val_0.JPEG\tn99\n", "line 1: found .*n99"),
        (b"val_0.JPEG\tn01\nval_1.JPEG\n", "line 2: found 'val_1.JPEG', expected a file name"),
        (b"../val_0.JPEG\tn01\n", "line 1: found"),
        (b"/etc/passwd\tn01\n", "line 1: found"),
        (b"\tn01\n", "line 1: found"),
        (b"..\tn01\n", "line 1: found"),
        (b"\xff\xfe\n", "found bytes that are no text"),
        (b"", "found no line, expected one an image"),
        (b"absent.JPEG\tn01\n", "absent.JPEG: cannot be read: No such file"),
    ):
        annotations.write_bytes(text)
        with pytest.raises(ArgumentError, match=says):
            tiny_imagenet(folder)
    (folder / "train" / "n03" / "images").mkdir(parents=True)
    with pytest.raises(ArgumentError, match=r"n03/images: found no \.JPEG file"):
        tiny_imagenet(folder)
    (folder / "train" / "n03" / "images").rmdir()
    with pytest.raises(ArgumentError, match="n03/images: cannot be read"):
        tiny_imagenet(folder)
    with pytest.raises(ArgumentError, match="train: cannot be read"):
        tiny_imagenet(folder / "absent")


def test_mutants_are_refused_or_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    out = io.BytesIO()
    image.fromarray(noise).save(out, "JPEG")
    path, outcomes = tmp_path / "x.JPEG", set()
    for data in mutants(out.getvalue(), 200, 4):
        path.write_bytes(data)
        outcomes.add(type(read_or_refused(lambda p: decoded([p]), path)))
    assert outcomes == {ArgumentError, torch.Tensor}


def test_more_images_than_there_are_is_refused_before_memory_is_taken(folder, monkeypatch):
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text().splitlines()[0] + "\n")
    assert len(tiny_imagenet(folder)[2]) == 1
    annotations.write_text(annotations.read_text() * 10_001)
    with pytest.raises(ArgumentError, match="found 10001 lines, expected 1 to 10000"):
        tiny_imagenet(folder)
    annotations.write_bytes(b"x" * (16 << 20))
    with pytest.raises(ArgumentError, match="found 16777216 bytes or more"):
        tiny_imagenet(folder)
    monkeypatch.setitem(MOST, "train", 1)
    with pytest.raises(ArgumentError, match="found more than 1 images"):
        tiny_imagenet(folder)
