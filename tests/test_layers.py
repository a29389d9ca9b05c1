"""Layers that several models share."""

import pytest
import torch
import torch.nn.functional as F

from anyres.errors import InputError
from anyres.models.layers import StridedConv2d
from tiny import random_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("inputs", "kernel", "stride", "padding"), [(48, 3, 2, 1), (4, 2, 2, 0), (3, 16, 16, 0)]
)
@pytest.mark.parametrize("columns", [1, 2])
def test_a_strided_convolution_of_a_narrow_map(dtype, inputs, kernel, stride, padding, columns):
    torch.manual_seed(0)
    layer = StridedConv2d(inputs, 128, kernel, stride, padding).to(dtype)
    x = torch.randn(1, inputs, 64 * stride, stride * columns).to(dtype)
    with torch.no_grad():
        answer = layer(x)
        expected = F.conv2d(
            x.double(), layer.weight.double(), layer.bias.double(), stride, padding
        ).to(dtype)
    assert answer.shape == (1, 128, 64, columns)
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(answer, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["default", "hrsam_pp_ti", "sam_ti", "mobile_sam"])
def test_no_picture_at_all(name):
    with torch.no_grad(), pytest.raises(InputError, match="no picture"):
        random_model(name).encode(torch.zeros(0, 3, 64, 64))
