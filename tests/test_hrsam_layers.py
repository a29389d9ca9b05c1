"""Layers of HRSAM's blocks that are not as built: wrapped, hooked, or in another precision."""

import copy

import pytest
import torch
from torch import nn

from anyres.models.config import HRSAMConfig
from anyres.models.hrsam import HRSAMEncoder

# Sizes that the compiled kernels take.
CONFIG = HRSAMConfig(dim=64, heads=1, window=8, blocks=2, out_blocks=(1,), state=4, neck=16)
LAYERS = {
    "blocks.0.attn.qkv",
    "blocks.0.attn.proj",
    "blocks.1.mlp.fc1",
    "blocks.1.mlp.fc2",
    "mamba_blocks.0.in_proj.0",
    "mamba_blocks.0.ssm_proj",
    "mamba_blocks.0.out_proj",
}


class Adapted(nn.Module):
    """A layer and a low-rank addition to it, with the layer's parameters where others look."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    weight = property(lambda self: self.layer.weight)
    bias = property(lambda self: self.layer.bias)
    in_features = property(lambda self: self.layer.in_features)
    out_features = property(lambda self: self.layer.out_features)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))

    def merged(self):
        merged = copy.deepcopy(self.layer)
        merged.weight.data += self.up.weight.data @ self.down.weight.data
        return merged


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return HRSAMEncoder(CONFIG).eval()


def put(encoder, name, layer):
    parent, _, own = name.rpartition(".")
    setattr(encoder.get_submodule(parent), own, layer)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_a_layer_in_anothers_place_is_called(encoder, name, grad):
    pixels = torch.randn(2, 3, 144, 160)
    adapted = Adapted(encoder.get_submodule(name))
    with torch.set_grad_enabled(grad):
        before = encoder(pixels)
        put(encoder, name, adapted)
        found = encoder(pixels)
        put(encoder, name, adapted.merged())
        wanted = encoder(pixels)
    assert (found - before).abs().max() > 0.01
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("grad", [True, False])
def test_hooks_are_called(encoder, grad):
    names = {n for n, layer in encoder.named_modules() if isinstance(layer, nn.Linear)}
    assert names >= LAYERS
    called = set()
    for name in names:
        layer = encoder.get_submodule(name)
        layer.register_forward_hook(lambda _layer, _in, _out, name=name: called.add(name))
    with torch.set_grad_enabled(grad):
        encoder(torch.randn(1, 3, 128, 128))
    assert called == names


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_two_precisions_are_no_silent_garbage(encoder, name):
    encoder.bfloat16().get_submodule(name).float()
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        encoder(torch.randn(1, 3, 128, 128).bfloat16())


def test_norms_in_float32(encoder):
    pixels = torch.randn(1, 3, 128, 128).bfloat16()
    encoder.bfloat16()
    with torch.no_grad():
        half = encoder(pixels).float()
        for layer in encoder.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.float()
        found = encoder(pixels).float()
    assert (found - half).abs().max() < 0.05 * half.abs().max()


@pytest.mark.parametrize("name", ["lateral_convs.0", "out_conv", "patch_embed"])
def test_other_layers_around_the_blocks_are_called(encoder, name):
    """Some that are no sequence, and see the whole picture once."""
    pixels = torch.randn(1, 3, 256, 256)
    seen = []

    class Watched(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            seen.append(x.shape)
            return self.layer(x)

    with torch.no_grad():
        wanted = encoder(pixels)
        put(encoder, name, Watched(encoder.get_submodule(name)))
        found = encoder(pixels)
    assert len(seen) == 1
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_what_hooks_keep_stays_as_it_was(encoder):
    """Tokens are replaced as they go through the encoder only where nobody sees them."""
    kept = []
    for layer in (*encoder.blocks, *encoder.mamba_blocks):
        layer.register_forward_hook(lambda _layer, _in, out: kept.append((out, out.clone())))
    with torch.no_grad():
        encoder(torch.randn(1, 3, 256, 256))
    assert len(kept) >= 2
    assert all(torch.equal(now, then) for now, then in kept)
