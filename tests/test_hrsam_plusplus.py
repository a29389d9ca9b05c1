"""HRSAM++ against the official code's numbers, and both encoders against a plain twin of them."""

from dataclasses import replace

import pytest
import torch

from anyres.errors import InputError
from anyres.models.config import HRSAMConfig
from anyres.models.hrsam import HRSAMEncoder
from anyres.models.hrsam_blocks import CycleScan
from anyres.models.presets import preset
from anyres.models.weights import from_official
from anyres.ops.rope import window_table
from anyres.ops.windows import partition
from naive_hrsam import naive_encode
from tiny import OFFICIAL_HRSAM

OFFICIAL = replace(OFFICIAL_HRSAM, anchor=64, shift_anchor=True)
OWN = replace(OFFICIAL, positions="crop", shift_anchor=False)
STEPS = "160x128_b1"
CASES = ["64x64_b1", "128x128_b1", "128x128_b2", "160x128_b1", "160x128_b2"]


def random_encoder(config, seed=0):
    """All weights away from the values that hide mistakes: zero pads, ones, equal gammas."""
    torch.manual_seed(seed)
    encoder = HRSAMEncoder(config).double().eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if not name.endswith("As_log"):
                parameter += 0.2 * torch.randn_like(parameter)
    return encoder


@pytest.fixture(scope="module")
def official(golden):
    facts, tensors = golden("hrsam_plusplus_encoder")
    state = {name: tensor for name, tensor in tensors.items() if "::" not in name}
    return tensors, from_official("hrsam++", state, facts["constructor_args"])


def test_official_arguments(official):
    assert official[1].config == OFFICIAL


@pytest.mark.parametrize("case", CASES)
def test_golden(official, case):
    tensors, encoder = official
    image = tensors[f"in::{case}::image_i8"].float() / 32
    with torch.no_grad():
        single = encoder.float()(image)
        double = encoder.double()(image.double())
    wanted, wanted_f64 = tensors[f"out::{case}::embed"], tensors[f"out::{case}::embed_f64"]
    assert (single - wanted).abs().max() <= 1e-4 * max(1, wanted.abs().max())
    assert (double - wanted_f64).abs().max() <= 1e-9


def test_golden_steps(official):
    """Every intermediate that the official code has: tokens of the picture, then the anchor's."""
    tensors, encoder = official
    encoder.float()
    image = tensors[f"in::{STEPS}::image_i8"].float() / 32
    tokens = [encoder._embed(x)[0] for x in (image, encoder._shrink(image))]
    seen = {"tokens": [x.flatten(0, 2) for x in tokens]}

    def keep(name):
        def hook(_module, _inputs, output):
            seen.setdefault(name, []).append(output.reshape(-1, output.shape[-1]))

        return hook

    handles = []
    for i, block in enumerate(encoder.blocks):
        handles.append(block.register_forward_hook(keep(f"block{i}")))
        if i < 2:
            handles.append(block.attn.register_forward_hook(keep(f"block{i}_attn")))
    for i in range(2):
        handles.append(encoder.ss_mamba_blocks[i].register_forward_hook(keep(f"ss_mamba{i}")))
        handles.append(encoder.ms_mamba_blocks[i].register_forward_hook(keep(f"ms_mamba{i}")))
        handles.append(encoder.lateral_convs[i].register_forward_hook(keep(f"lateral{i}")))
    # With gradients: without, what is in a block is not called by itself.
    encoder(image)
    for handle in handles:
        handle.remove()
    assert len(seen) == 13
    for name, parts in seen.items():
        wanted = tensors[f"mid::{STEPS}::{name}"]
        if name.startswith("lateral"):
            wanted = wanted[0].flatten(1).T
        found = torch.cat(parts).detach()
        assert (found - wanted).abs().max() <= 1e-4 * max(1, wanted.abs().max()), name


def test_golden_windows(official):
    """Both scales' window tables: rows of the picture's windows, then of the anchor's."""
    tensors, encoder = official
    grids = ((10, 8), (4, 4))
    numbers = torch.arange(96.0).split([80, 16])
    maps = [x.reshape(1, *grid, 1) for x, grid in zip(numbers, grids, strict=True)]
    plans = [encoder._plans(x, is_anchor=i > 0) for i, x in enumerate(maps)]
    cos, sin = window_table(encoder.rope.freqs, 4)
    for i, kind in enumerate(("plain", "shift")):
        wanted = tensors[f"mid::{STEPS}::{kind}_window_indices"].float()
        pad = torch.tensor([96.0])  # all tokens of a sample: means padding
        ours = [partition(x, plan[i], pad).flatten() for x, plan in zip(maps, plans, strict=True)]
        assert torch.equal(torch.cat(ours), wanted)
        # Only distances within a window matter; the first counts from the same corner as ours.
        for table, name in ((cos, "cos"), (sin, "sin")):
            first = tensors[f"mid::{STEPS}::{kind}_rope_{name}"][:16]
            assert (table.repeat_interleave(2, 1) - first).abs().max() < 1e-6


@pytest.mark.parametrize(("case", "lengths"), [("12_8", [12, 8]), ("20", [20])])
def test_golden_scan_of_each_scale(golden, case, lengths):
    facts, tensors = golden("hrsam_mamba_block")
    sizes = facts["constructor_args"]
    scan = CycleScan(sizes["embed_dim"], sizes["state_dim"], sizes["extend_ratio"])
    scan.load_state_dict({k: v for k, v in tensors.items() if "::" not in k})
    name = f"pp_split{case}_L20_b2"
    x = tensors[f"in::{name}::x"].unflatten(0, (2, -1))
    with torch.no_grad():
        single = torch.cat([scan(part) for part in x.split(lengths, 1)], 1).flatten(0, 1)
        scan.double()
        double = torch.cat([scan(part) for part in x.double().split(lengths, 1)], 1).flatten(0, 1)
    assert (single - tensors[f"out::{name}::y"]).abs().max() <= 1e-4
    assert (double - tensors[f"out::{name}::y_f64"]).abs().max() <= 1e-9


CONFIGS = {
    "official, two rows of windows": (OFFICIAL, (80, 112)),
    "official, anchor larger than the picture": (OFFICIAL, (32, 48)),
    "odd depth, last block gives nothing": (
        replace(OFFICIAL, blocks=5, out_blocks=(0, 3), window=3, state=3, cycles=2),
        (96, 64),
    ),
    "one window, never shifted": (OWN, (96, 96)),
    "anchor of several windows": (replace(OWN, window=3, cycles=4), (64, 64)),
    "patch 8": (replace(OWN, patch=8, anchor=32, heads=4, dim=32), (40, 40)),
    "HRSAM": (replace(OFFICIAL, anchor=0, shift_anchor=False), (80, 112)),
    "HRSAM, blocks by other numbers": (
        replace(OFFICIAL, anchor=0, shift_anchor=False, out_blocks=(0, 1, 2), cycles=1, window=5),
        (48, 80),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_plain_twin(name):
    config, size = CONFIGS[name]
    encoder = random_encoder(config)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        found = encoder(image)
        wanted = naive_encode(encoder.state_dict(), config, image)
    assert (found - wanted).abs().max() <= 1e-9


@pytest.mark.parametrize("config", [OFFICIAL, OWN], ids=["first", "second"])
def test_batch_equals_singles(config):
    encoder = random_encoder(config)
    images = torch.randn(8, 3, 96, 160, dtype=torch.float64)
    with torch.no_grad():
        together = encoder(images)
        alone = torch.cat([encoder(image[None]) for image in images])
    assert (together - alone).abs().max() < 1e-12


@pytest.mark.parametrize("size", [(64, 256), (256, 64), (16, 16), (16, 320)])
def test_any_proportions(size):
    encoder = random_encoder(OWN)
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        embedding = encoder(image)
        changed = encoder(image + torch.linspace(0, 1, size[1], dtype=torch.float64))
    assert embedding.shape == (1, 16, size[0] // 16, size[1] // 16)
    assert embedding.isfinite().all()
    assert (embedding - changed).abs().amax((0, 1)).min() > 0


def test_the_anchor_carries_far():
    """What changes in one corner is seen in the other through the anchor, without any scan."""
    encoder = random_encoder(OWN)
    with torch.no_grad():
        for scan in (*encoder.ss_mamba_blocks, *encoder.ms_mamba_blocks):
            scan.out_proj.weight.zero_()
        image = torch.randn(1, 3, 256, 256, dtype=torch.float64)
        before = encoder(image)
        image[..., :16, :16] += 1
        after = encoder(image)
    assert (before - after).abs().amax(1)[0, -1, -1] > 1e-6


def test_gradients_reach_everything():
    encoder = random_encoder(OWN).train()
    encoder(torch.randn(2, 3, 96, 80, dtype=torch.float64)).square().mean().backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    # Slot 0 of the table is unused, but the table as a whole is.
    assert without == []


def test_bfloat16_is_near():
    encoder = random_encoder(OWN)
    image = torch.randn(1, 3, 128, 96, dtype=torch.float64)
    with torch.no_grad():
        exact = encoder(image)
        rough = encoder.bfloat16()(image.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_presets_are_the_second_version():
    for size in ("ti", "s", "b"):
        plain, joint = preset(f"hrsam_{size}"), preset(f"hrsam_pp_{size}")
        assert joint.encoder == replace(plain.encoder, anchor=256)
        assert joint.encoder.anchor == joint.encoder.patch * joint.encoder.window


def test_configurations_that_make_no_model():
    with pytest.raises(InputError, match="anchor 100 is not a multiple of the patch 16"):
        HRSAMConfig(anchor=100)
    with pytest.raises(InputError, match="shift_anchor needs an anchor"):
        HRSAMConfig(shift_anchor=True)
