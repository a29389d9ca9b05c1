"""SAM's prompt encoder: points, boxes and a previous mask to embeddings (Kirillov et al. 2023).

Shapes: P prompts, N points each, C channels, (h, w) token grid, (H, W) model input in pixels.
Coordinates are XY in pixels of the model input.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.config import DecoderConfig
from anyres.models.layers import (
    LastMade,
    LayerNorm2d,
    StridedConv2d,
    resize_table,
    weight_and_bias,
)
from anyres.ops import block
from anyres.ops.threads import runs_in_parts


class RandomPositions(nn.Module):
    """Random Fourier features of coordinates in [0, 1] (Tancik et al. 2020)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def forward(self, xy: Tensor) -> Tensor:
        """Encode XY coordinates (..., 2) in [0, 1] as (..., 2 * features), in float32 or wider."""
        matrix = self.positional_encoding_gaussian_matrix
        # Frequencies multiply the coordinate: in bf16 its rounding would be seen as a shift.
        wide = torch.promote_types(matrix.dtype, torch.float32)
        with torch.autocast(xy.device.type, enabled=False):
            angles = 2 * math.pi * ((2 * xy.to(wide) - 1) @ matrix.to(wide))
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def grid(self, grid_hw: tuple[int, int], extent_hw: tuple[float, float]) -> Tensor:
        """Encode the centres of a token grid, (C, h, w).

        Args:
            grid_hw: the grid.
            extent_hw: the length, in tokens, that counts as 1 on each axis.
        """
        device = self.positional_encoding_gaussian_matrix.device
        y, x = (
            (torch.arange(n, device=device, dtype=torch.float64) + 0.5) / extent
            for n, extent in zip(grid_hw, extent_hw, strict=True)
        )
        xy = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), dim=-1)
        wide = torch.promote_types(self.positional_encoding_gaussian_matrix.dtype, torch.float32)
        encoded: Tensor = self(xy.to(wide))
        return encoded.permute(2, 0, 1)


class PromptEncoder(nn.Module):
    """Encode points, boxes and masks for the mask decoder, for any token grid."""

    def __init__(self, config: DecoderConfig, image_size: int, patch: int) -> None:
        super().__init__()
        dim, channels = config.dim, config.mask_channels
        self.stretch = config.positions == "stretch"
        self.train_grid = image_size // patch
        self.patch = patch
        self.pe_layer = RandomPositions(dim // 2)
        # Negative point, positive point, top left and bottom right corner of a box.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            StridedConv2d(channels // 4, channels, 2, stride=2),
            LayerNorm2d(channels),
            nn.GELU(),
            nn.Conv2d(channels, dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)
        self._ordered = LastMade[Any]()

    def dense_positions(self, grid_hw: tuple[int, int]) -> Tensor:
        """Positions of the image tokens, (1, C, h, w).

        ``crop``: normalised by the long side. ``stretch``: interpolated from the training grid, as
        the official HRSAM does, which is not the same as encoding the new centres.
        """
        dtype = self.no_mask_embed.weight.dtype
        if not self.stretch:
            side = max(grid_hw)
            return self.pe_layer.grid(grid_hw, (side, side))[None].to(dtype)
        side = self.train_grid
        table = self.pe_layer.grid((side, side), (side, side))[None]
        return resize_table(table, grid_hw, "bilinear", stretch=True).to(dtype)

    def forward(
        self,
        grid_hw: tuple[int, int],
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Embed the prompts.

        Args:
            grid_hw: token grid of the picture.
            points: coordinates (P, N, 2) and labels (P, N): 1 foreground, 0 background, -1 padding.
            boxes: (P, 4) XYXY.
            masks: logits (P, 1, 4h, 4w).

        Returns:
            Sparse embeddings (P, N', C), N' = 0 without points and boxes, and dense embeddings
            (P, C, h, w).
        """
        count = self._count(points, boxes, masks)
        weight = self.no_mask_embed.weight
        extent = self._extent(grid_hw, weight.device)
        sparse = [weight.new_zeros(count, 0, weight.shape[1])]
        if points is not None:
            sparse.append(self._embed_points(*points, extent, pad=boxes is None))
        if boxes is not None:
            sparse.append(self._embed_boxes(boxes, extent))
        if masks is not None:
            dense = self._embed_masks(masks)
        else:
            dense = weight.reshape(1, -1, 1, 1).expand(count, -1, *grid_hw)
        return torch.cat(sparse, dim=1), dense

    def _embed_masks(self, masks: Tensor) -> Tensor:
        """Dense embeddings of logits (P, 1, 4h, 4w): each token's of its own 4 x 4."""
        weight = self.no_mask_embed.weight
        first, norm, _, second, norm2, _, last = self.mask_downscaling
        sizes = weight.shape[1], weight_and_bias(second)[0].shape[0]
        if not (runs_in_parts(masks) and block.masks_run_in_tiles(weight.dtype, *sizes)):
            whole: Tensor = self.mask_downscaling(masks.to(weight.dtype))
            return whole
        from anyres.ops import mask_cpu

        parameters = [
            x for layer in (first, norm, second, norm2, last) for x in weight_and_bias(layer)
        ]
        eps = cast("LayerNorm2d", norm).eps, cast("LayerNorm2d", norm2).eps
        ready = self._ordered(parameters, eps, lambda given: mask_cpu.ordered(given, eps))
        return mask_cpu.embed(masks, ready)

    @staticmethod
    def _count(
        points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> int:
        for prompt in (points[0] if points is not None else None, boxes, masks):
            if prompt is not None:
                return prompt.shape[0]
        return 1

    def _extent(self, grid_hw: tuple[int, int], device: torch.device) -> Tensor:
        """The lengths in input pixels that count as 1, as (x, y)."""
        height, width = grid_hw
        if not self.stretch:
            height = width = max(grid_hw)
        sides = [width * self.patch, height * self.patch]
        return torch.tensor(sides, dtype=torch.float64, device=device)

    def _encode(self, xy: Tensor, extent: Tensor) -> Tensor:
        # Half a pixel: a click means the centre of its pixel. In float32 as the official code.
        dtype = self.no_mask_embed.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        encoded: Tensor = self.pe_layer((xy.to(wide) + 0.5) / extent.to(wide))
        return encoded.to(dtype)

    def _embed_points(self, xy: Tensor, labels: Tensor, extent: Tensor, pad: bool) -> Tensor:
        if pad:
            # SAM always has a box or a padding point among its tokens.
            xy = F.pad(xy, (0, 0, 0, 1))
            labels = F.pad(labels, (0, 1), value=-1)
        embedding = self._encode(xy, extent)
        labels = labels[..., None]
        padding = self.not_a_point_embed.weight
        embedding = torch.where(labels == -1, padding.expand_as(embedding), embedding)
        for value in (0, 1):
            offset = self._kind(value)
            embedding = torch.where(labels == value, embedding + offset, embedding)
        return embedding

    def _embed_boxes(self, boxes: Tensor, extent: Tensor) -> Tensor:
        corners = self._encode(boxes.reshape(-1, 2, 2), extent)
        return corners + torch.cat([self._kind(2), self._kind(3)])

    def _kind(self, number: int) -> Tensor:
        return self.point_embeddings.get_parameter(f"{number}.weight")
