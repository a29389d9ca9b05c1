"""HRSAM and HRSAM++ written plainly: windows token by token, the sequence tiled R times.

Slow, and independent of ``anyres.models.hrsam`` but for the names of its parameters: the official
state dicts'. Shapes: (B, h, w, C) maps.
"""

import math

import torch
import torch.nn.functional as F


def naive_encode(state, config, image):
    """The embedding (B, neck, H/patch, W/patch) of normalised pixels (B, 3, H, W)."""
    singles = [_encode(state, config, one[None]) for one in image]
    return torch.cat(singles)


def _encode(state, config, image):
    pictures = [image]
    if config.anchor:
        side = (config.anchor, config.anchor)
        smooth = not config.shift_anchor
        pictures.append(F.interpolate(image, side, mode="bilinear", antialias=smooth))
    scales = [_embed(state, config, picture) for picture in pictures]
    total = 0
    for i in range(config.blocks):
        is_out = i in config.out_blocks
        number = config.out_blocks.index(i) if is_out else -1
        if is_out:
            name = "ss_mamba_blocks" if config.anchor else "mamba_blocks"
            scales = [_scan_maps(state, f"{name}.{number}.", [scale])[0] for scale in scales]
        new = []
        for j, scale in enumerate(scales):
            shifted = i % 2 == 1 and (j == 0 or config.shift_anchor)
            new.append(_block(state, f"blocks.{i}.", config, scale, shifted))
        scales = new
        if is_out:
            if config.anchor:
                scales = _scan_maps(state, f"ms_mamba_blocks.{number}.", scales)
            joined = scales[0]
            if config.anchor:
                up = F.interpolate(
                    scales[1].permute(0, 3, 1, 2), scales[0].shape[1:3], mode="bilinear"
                )
                norm = f"multi_scale_fusion.{number}.0."
                both = [scales[0], up.permute(0, 2, 3, 1)]
                joined = torch.cat([_norm(state, norm, x) for x in both], -1)
            lateral = joined @ state[f"lateral_convs.{number}.0.weight"].T
            total = total + _norm(state, f"lateral_convs.{number}.1.", lateral)
    weight = state["out_conv.0.weight"]
    smoothed = F.conv2d(total.permute(0, 3, 1, 2), weight, padding=1, groups=len(weight))
    return _norm(state, "out_conv.2.", smoothed.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}weight"], state[f"{name}bias"], 1e-5)


def _linear(state, name, x):
    return x @ state[f"{name}weight"].T + state[f"{name}bias"]


def _embed(state, config, image):
    tokens = F.conv2d(
        image,
        state["patch_embed.proj.weight"],
        state["patch_embed.proj.bias"],
        stride=config.patch,
    )
    if "pos_embed" in state:
        side = math.isqrt(state["pos_embed"].shape[1] - 1)
        table = state["pos_embed"][0, 1:].T.reshape(1, -1, side, side)
        tokens = tokens + F.interpolate(table, tokens.shape[2:], mode="bilinear")
    return tokens.permute(0, 2, 3, 1)


def _block(state, name, config, x, shifted):
    x = x + _attention(state, f"{name}attn.", config, _norm(state, f"{name}norm1.", x), shifted)
    hidden = F.gelu(_linear(state, f"{name}mlp.fc1.", _norm(state, f"{name}norm2.", x)))
    return x + _linear(state, f"{name}mlp.fc2.", hidden)


def _attention(state, name, config, x, shifted):
    _, height, width, dim = x.shape
    w = config.window
    before = w - w // 2 if shifted else 0
    out = torch.zeros_like(x)
    for top in range(-before, height, w):
        for left in range(-before, width, w):
            rows, places = [], []
            for y in range(top, top + w):
                for z in range(left, left + w):
                    inside = 0 <= y < height and 0 <= z < width
                    rows.append(x[0, y, z] if inside else state[f"{name}padding"][0])
                    places.append((y, z) if inside else None)
            answers = _one_window(state, name, config, torch.stack(rows))
            for place, answer in zip(places, answers, strict=True):
                if place is not None:
                    out[0, place[0], place[1]] = answer
    assert dim == answers.shape[-1]
    return out


def _one_window(state, name, config, tokens):
    q, k, v = _linear(state, f"{name}qkv.", tokens).chunk(3, -1)
    d = q.shape[-1] // config.heads
    answers = []
    for h in range(config.heads):
        part = slice(h * d, (h + 1) * d)
        turned_q = _rotate(state, config, q[:, part])
        turned_k = _rotate(state, config, k[:, part])
        share = (turned_q @ turned_k.T / math.sqrt(d)).softmax(-1)
        answers.append(share @ v[:, part])
    return _linear(state, f"{name}proj.", torch.cat(answers, -1))


def _rotate(state, config, x):
    """Pairs of channels as complex numbers, turned back by the angle of row, then column."""
    place = torch.arange(config.window**2)
    y, z = place // config.window, place % config.window
    freqs = state["rope.freqs"].to(x.dtype)
    angles = torch.cat([y[:, None] * freqs / 2, z[:, None] * freqs / 2], -1)
    pairs = torch.complex(x[:, 0::2], x[:, 1::2]) * torch.polar(torch.ones_like(angles), -angles)
    return torch.stack([pairs.real, pairs.imag], -1).flatten(1)


def _scan_maps(state, name, maps):
    lengths = [x.shape[1] * x.shape[2] for x in maps]
    tokens = torch.cat([x.flatten(1, 2)[0] for x in maps])
    tokens = tokens + _scan(state, name, tokens)
    parts = tokens.split(lengths)
    return [part.reshape(x.shape) for part, x in zip(parts, maps, strict=True)]


def _scan(state, name, tokens):
    gamma = state[f"{name}gamma"][..., 0]
    repeats, length = gamma.shape[1], len(tokens)
    u, gate = F.silu(_linear(state, f"{name}in_proj.0.", _norm(state, f"{name}in_norm.", tokens))).chunk(2, -1)  # fmt: skip  # noqa: E501
    states = state[f"{name}As_log"].shape[1]
    delta, b, c = _linear(state, f"{name}ssm_proj.", u).split([u.shape[1], states, states], -1)
    delta = F.softplus(delta + state[f"{name}ssm_proj_bias"])
    decay = -state[f"{name}As_log"].exp()
    h = torch.zeros_like(decay)
    y = torch.zeros_like(u)
    for t in range(repeats * length):
        r, i = divmod(t, length)
        h = (delta[i][:, None] * decay).exp() * h + (delta[i] * u[i])[:, None] * b[i]
        y[i] += gamma[:, r] * (h @ c[i] + state[f"{name}Ds"] * u[i])
    return _linear(state, f"{name}out_proj.", gate * _norm(state, f"{name}out_norm.", y))
