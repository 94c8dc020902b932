import copy
import gc
import pickle

import pytest
import torch

from lotterykit.ops import formats
from lotterykit.ops.formats import bit_mask, known_density, pack_bits, unpack_bits


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (4, 8), (5, 9), (2, 33), (0, 5), (5, 0)])
def test_bits_match_the_definition_and_unpack(shape):
    mask = torch.rand(shape) < 0.5
    bits = pack_bits(mask)
    assert bits.shape == (shape[0], -(-shape[1] // 8))
    for o in range(shape[0]):
        for i in range(shape[1]):
            assert (int(bits[o, i // 8]) >> (i % 8)) & 1 == int(mask[o, i])
    assert torch.equal(unpack_bits(bits, shape[1]), mask)


def test_spare_bits_are_zero():
    assert pack_bits(torch.ones(2, 3, dtype=torch.bool)).tolist() == [[7], [7]]


def test_transposed_mask():
    mask = torch.rand(9, 4) < 0.5
    transposed = mask.T
    found = bit_mask(transposed)
    del transposed  # the mask may be a temporary: what was made of it outlives it
    assert torch.equal(found.bits, pack_bits(mask.T.contiguous()))
    assert found.count == int(mask.sum())


def test_cache_is_renewed_by_in_place_changes_only():
    mask = torch.ones(4, 4, dtype=torch.bool)
    first = bit_mask(mask)
    assert bit_mask(mask) is first
    assert (first.count, first.density) == (16, 1.0)
    mask[0, 0] = False
    assert bit_mask(mask).count == 15
    assert torch.equal(bit_mask(mask).bits, pack_bits(mask))
    mask.copy_(torch.zeros(4, 4, dtype=torch.bool))
    assert bit_mask(mask).density == 0.0


def test_cache_does_not_keep_masks_alive():
    gc.collect()
    before = len(formats._cache)
    masks = [torch.ones(3, 3, dtype=torch.bool) for _ in range(5)]
    for mask in masks:
        assert bit_mask(mask).count == 9
    assert len(formats._cache) == before + 5
    del mask, masks
    gc.collect()
    assert len(formats._cache) == before


def test_copies_of_a_cached_mask_are_independent():
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert bit_mask(mask).count == 4
    for other in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        other[0, 0] = False
        assert (bit_mask(other).count, bit_mask(mask).count) == (3, 4)


def test_inference_tensors_are_not_cached():
    with torch.inference_mode():
        mask = torch.ones(2, 2, dtype=torch.bool)
        assert bit_mask(mask).count == 4
        mask[0, 0] = False
        assert bit_mask(mask).count == 3


def test_unreadable_masks_have_no_known_density():
    assert known_density(torch.ones(2, 2, dtype=torch.bool, device="meta")) is None
    seen = []
    torch.vmap(lambda m: seen.append(known_density(m)) or m)(torch.ones(3, 2, 2, dtype=torch.bool))
    assert seen == [None]
    assert known_density(torch.ones(0, 2, dtype=torch.bool)) == 1.0


def test_nothing_that_a_graph_will_compute_is_remembered(monkeypatch):
    monkeypatch.setattr(formats, "_capturing", lambda tensor: True)
    mask = torch.rand(3, 9) < 0.5
    captured = bit_mask(mask)
    assert known_density(mask) is None  # counting would wait
    assert torch.equal(captured.bits, pack_bits(mask))
    assert captured.bits is not captured.bits
    assert captured.flat_bits() is not captured.flat_bits()
    monkeypatch.undo()
    after = bit_mask(mask)
    assert after is not captured
    assert after.bits is after.bits is bit_mask(mask).bits
    monkeypatch.setattr(formats, "_capturing", lambda tensor: True)
    assert bit_mask(mask).bits is after.bits  # what was there before the capture serves it
