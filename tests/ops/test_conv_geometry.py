import pytest
import torch
from torch.nn import functional as F

from lotterykit.ops.conv_geometry import geometry_of, of_torch


@pytest.mark.parametrize("padding", [0, (1, 2), "same"])
def test_images_of_one_channel_convolve_right_in_either_layout(padding):
    """torch's own float32 convolution errs here with AVX-512 where the strides are those of channels-last."""
    stride = (1, 1) if padding == "same" else (1, 2)
    x, weight = torch.randn(8, 17, 4, 1).permute(0, 3, 1, 2), torch.randn(3, 1, 3, 3)
    expected = F.conv2d(x.double(), weight.double(), None, stride, padding)
    images, rest = of_torch(x, geometry_of("test", (3, 3), stride, padding, 1, 1))
    assert images.stride() == (68, 68, 4, 1)
    torch.testing.assert_close(F.conv2d(images, weight, None, *rest), expected.float())
    one, _ = of_torch(x[0], geometry_of("test", (3, 3), 1, 0, 1, 1))
    assert torch.equal(one, x[0])
