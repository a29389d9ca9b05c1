"""The image encoders HRSAM and HRSAM++ (arXiv 2407.02109): windows joined by cycle-scans.

Their cost is linear in the picture.

Even blocks attend inside plain windows, odd ones inside shifted windows. Before each of
``out_blocks`` a cycle-scan carries information along the raster sequence of all tokens. The outputs
of those blocks are projected, summed and smoothed into the embedding.

HRSAM++ also sees the whole picture shrunk to a small square, the anchor. Both scales go through the
same blocks, each in windows of its own; the scan before an out block runs over each scale, and one
more after it over the tokens of both, picture first: there they meet. The anchor's map is then
brought to the picture's grid and joined to its channels.

Parameter names are those of the official state dicts.

Shapes: B pictures, (h, w) token grid, C channels, L = h * w.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.config import HRSAMConfig
from anyres.models.hrsam_blocks import Block, CycleScan, as_built, group_size
from anyres.models.layers import ChannelsLast, LastMade, PatchEmbed, check_pixels, resize_table
from anyres.models.stem import ConvStem
from anyres.ops import block
from anyres.ops.precision import wide
from anyres.ops.rope import frequencies, window_table
from anyres.ops.threads import alone, runs_in_parts, share
from anyres.ops.windows import WindowPlan, window_plan

T = TypeVar("T")


class _Frequencies(nn.Module):
    freqs: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("freqs", frequencies(head_dim))


class HRSAMEncoder(nn.Module):
    """HRSAM's encoder, with an anchor HRSAM++'s: (B, 3, H, W) to (B, neck, H/patch, W/patch).

    Attributes:
        img_size: long side it is trained at, in pixels; 0 outside a ``Segmenter``.
        config: what it was built from.
    """

    def __init__(self, config: HRSAMConfig) -> None:
        super().__init__()
        self.config = config
        self.img_size = 0
        dim = config.dim
        self.patch_embed: nn.Module
        if config.stem is None:
            self.patch_embed = PatchEmbed(config.patch, dim)
        else:
            self.patch_embed = ConvStem(config.stem, dim)
        # One slot more than positions: MAE's class token, unused.
        self.pos_embed = (
            nn.Parameter(torch.randn(1, config.table**2 + 1, dim) * 0.02) if config.table else None
        )
        self._fits = LastMade[Tensor](), LastMade[Tensor]()  # the picture's, the anchor's
        self.rope = _Frequencies(dim // config.heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        outs = config.out_blocks
        scans = [
            nn.ModuleList(CycleScan(dim, config.state, config.cycles) for _ in outs)
            for _ in range(2 if config.anchor else 1)
        ]
        if config.anchor:
            self.ss_mamba_blocks, self.ms_mamba_blocks = scans
            self.multi_scale_fusion = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim)) for _ in outs)
        else:
            (self.mamba_blocks,) = scans
        seen = 2 * dim if config.anchor else dim
        self.lateral_convs = nn.ModuleList(
            nn.Sequential(nn.Linear(seen, config.neck, bias=False), nn.LayerNorm(config.neck))
            for _ in outs
        )
        neck = config.neck
        self.out_conv = nn.Sequential(
            nn.Conv2d(neck, neck, 3, padding=1, groups=neck, bias=False),
            ChannelsLast(),
            nn.LayerNorm(neck),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Encode normalised pixels.

        Args:
            x: (B, 3, H, W), H and W multiples of the patch; rectangles and any size.

        Returns:
            (B, neck, H/patch, W/patch).

        Raises:
            InputError: another shape.
        """
        return self.forward_features(x)[0]

    def forward_features(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The embedding, and the stem's maps at strides 4 and 8 (none without a stem)."""
        check_pixels(x, self.config.patch)
        in_parts = runs_in_parts(x) and as_built(self._cut_layers(), x.dtype)
        work = partial(self._forward, x, in_parts)
        # A stem's convolutions, and scans that are not compiled, are torch's and want its threads.
        ours = in_parts and self.config.stem is None and block.scan_runs_compiled(x)
        return alone(work) if ours else work()

    def _forward(self, x: Tensor, in_parts: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        anchors = [self._shrink(x, in_parts)] if self.config.anchor else []
        tokens, details = self._embed(x, in_parts)
        scales = [tokens, *(self._embed(anchor, in_parts)[0] for anchor in anchors)]
        plans = [self._plans(scale, is_anchor=i > 0) for i, scale in enumerate(scales)]
        rope = _aside(in_parts, lambda: window_table(self.rope.freqs, self.config.window))
        outs = {number: i for i, number in enumerate(self.config.out_blocks)}
        kept: list[list[Tensor]] = []
        # Whether what is made may take the place of what it is made from: of 4096 pixels square,
        # fresh memory took a tenth of the whole time. A stem's tokens may be kept by a hook.
        over = in_parts and self.config.stem is None
        for i, layer in enumerate(self.blocks):
            if i in outs:
                scans = self.ss_mamba_blocks if self.config.anchor else self.mamba_blocks
                scales = cast(CycleScan, scans[outs[i]]).over_each(scales, over)
                over = in_parts
            of_block = [plan[i % 2] for plan in plans]
            if in_parts:
                scales = cast(Block, layer).over(scales, of_block, rope, over)
            else:
                pairs = zip(scales, of_block, strict=True)
                scales = [layer(scale, plan, rope) for scale, plan in pairs]
            over = in_parts
            if i in outs:
                if self.config.anchor:
                    joint = cast(CycleScan, self.ms_mamba_blocks[outs[i]])
                    scales = joint.over(scales, over)
                kept.append(scales)
                over = False
        return self._join(kept, in_parts), details

    def _cut_layers(self) -> Iterator[nn.Module]:
        """All that see the picture in parts: not a stem's, and not what is no layer."""
        for child in self.children():
            if not isinstance(child, ConvStem | _Frequencies):
                yield from child.modules()

    def _embed(self, x: Tensor, in_parts: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens with positions (B, h, w, C), and the stem's maps."""
        patch = self.config.patch
        grid_hw = (x.shape[2] // patch, x.shape[3] // patch)
        positions = _aside(in_parts, lambda: self._positions(grid_hw))
        if self.config.stem is not None:
            tokens, details = self.patch_embed(x)
            return tokens if positions is None else tokens + positions, details

        def embed(rows: slice) -> Tensor:
            some: Tensor = self.patch_embed(x[:, :, rows.start * patch : rows.stop * patch])
            return some if positions is None else some + positions[:, rows]

        return _in_bands(embed, x, (len(x), *grid_hw, self.config.dim), in_parts), ()

    def _shrink(self, x: Tensor, in_parts: bool = False) -> Tensor:
        """The picture as a square of the anchor's side, whatever its proportions."""
        side = self.config.anchor
        # The first version of the paper takes single pixels. The second's anchor is smaller, and of
        # a picture of 4096 pixels it would see one pixel in 256.
        smooth = not self.config.shift_anchor
        if smooth and in_parts and block.runs_in_lanes(x.dtype, x.shape[-1:]):
            from anyres.ops import shrink_cpu

            return shrink_cpu.shrink(x, side)
        small = F.interpolate(
            wide(x), (side, side), mode="bilinear", align_corners=False, antialias=smooth
        )
        return small.to(x.dtype)

    def _plans(self, tokens_BhwC: Tensor, *, is_anchor: bool) -> list[WindowPlan]:
        """Windows of even and of odd blocks."""
        grid_hw = (tokens_BhwC.shape[1], tokens_BhwC.shape[2])
        shifts = (False, self.config.shift_anchor or not is_anchor)
        return [window_plan(grid_hw, self.config.window, shifted=shifted) for shifted in shifts]

    def _join(self, kept: list[list[Tensor]], in_parts: bool) -> Tensor:
        """The embedding, of what came out of the out blocks."""
        tokens = kept[0][0]
        shape = (*tokens.shape[:3], self.config.neck)
        if in_parts and block.runs_in_lanes(tokens.dtype, (tokens.shape[-1], shape[-1])):
            return self._joined_compiled(kept).permute(0, 3, 1, 2)

        def widen(small_BssC: Tensor) -> Tensor:
            size = (small_BssC.shape[1], shape[2])
            small = wide(small_BssC).permute(0, 3, 1, 2)
            grown = F.interpolate(small, size, mode="bilinear", align_corners=False)
            return grown.permute(0, 2, 3, 1)

        kept = _aside(in_parts, lambda: [[one, *map(widen, small)] for one, *small in kept])

        def project(rows: slice) -> Tensor:
            fused = [self._fuse(scales, i, rows) for i, scales in enumerate(kept)]
            pairs = zip(self.lateral_convs, fused, strict=True)
            return torch.stack([lateral(x) for lateral, x in pairs]).sum(0)

        summed = _in_bands(project, tokens, shape, in_parts)

        def smooth(rows: slice) -> Tensor:
            start, stop = max(0, rows.start - 1), min(rows.stop + 1, shape[1])
            some = self.out_conv(summed[:, start:stop].permute(0, 3, 1, 2))
            inner: Tensor = some[:, rows.start - start : rows.stop - start]
            return inner

        return _in_bands(smooth, tokens, shape, in_parts).permute(0, 3, 1, 2)

    def _joined_compiled(self, kept: list[list[Tensor]]) -> Tensor:
        from anyres.ops import lateral_cpu

        joints = cast(
            Iterable[nn.Sequential], self.multi_scale_fusion if self.config.anchor else ()
        )
        laterals = cast(Iterable[nn.Sequential], self.lateral_convs)
        outs = [
            lateral_cpu.Out(scales, cast(nn.LayerNorm, joint[0]) if joint else None, *lateral)
            for scales, joint, lateral in zip_longest(kept, joints, laterals)
        ]
        return lateral_cpu.run(outs, *cast(Any, (self.out_conv[0], self.out_conv[2])))

    def _fuse(self, scales: list[Tensor], number: int, rows: slice) -> Tensor:
        """Both scales' channels side by side at some rows of the picture's grid.

        The anchor (B, s, w, C) is as wide as that already. Without one, the picture's alone.
        """
        tokens, *anchors = scales
        if not anchors:
            return tokens[:, rows]
        (small,) = anchors
        side, device = small.shape[1], small.device
        at = torch.arange(rows.start, rows.stop, device=device, dtype=small.dtype) + 0.5
        at = (at * (side / tokens.shape[1]) - 0.5).clamp_(0, side - 1)
        above = at.long()
        below = (above + 1).clamp_(max=side - 1)
        share_of_below = (at - above)[:, None, None]
        grown = torch.lerp(small[:, above], small[:, below], share_of_below).to(tokens.dtype)
        norm = self.multi_scale_fusion[number]
        return torch.cat([norm(tokens[:, rows]), norm(grown)], dim=-1)

    def _positions(self, grid_hw: tuple[int, int]) -> Tensor | None:
        """Absolute positions of a grid's tokens (1, h, w, C), if there are any."""
        if self.pos_embed is None:
            return None
        side = self.config.table
        table = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        stretch = self.config.positions == "stretch"

        def fit(table_1CHW: Tensor) -> Tensor:
            fitted = resize_table(table_1CHW, grid_hw, "bilinear", stretch)
            return fitted.permute(0, 2, 3, 1).contiguous()

        cache = self._fits[max(grid_hw) * self.config.patch == self.config.anchor]
        return cache([table], grid_hw, lambda tables: fit(tables[0]))


def _aside(in_parts: bool, work: Callable[[], T]) -> T:
    """What a call returns; it does not wake torch's own threads if ours share a picture."""
    return alone(work) if in_parts else work()


def _in_bands(
    work: Callable[[slice], Tensor], like: Tensor, shape: tuple[int, ...], in_parts: bool
) -> Tensor:
    """A map (B, h, ..) of what ``work`` makes of some rows; of all at once if not in parts."""
    if not in_parts:
        return work(slice(0, shape[1]))
    made = like.new_empty(shape)

    def put(rows: slice) -> None:
        made[:, rows] = work(rows)

    count = max(1, group_size(made) // shape[2])
    share(put, [slice(i, min(i + count, shape[1])) for i in range(0, shape[1], count)])
    return made
