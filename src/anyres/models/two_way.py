"""SAM's two-way transformer: prompt tokens and image tokens attend to each other by turns.

Kirillov et al. 2023, appendix A. Shapes: P prompts, T tokens, n image tokens, C channels, H heads.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.layers import MLPBlock
from anyres.ops import block
from anyres.ops.precision import wide
from anyres.ops.threads import runs_in_parts


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its model width.

    Tokens are few (T of them, H heads), image tokens are many (n). Where one side is the image, its
    projection is moved over to the tokens' side: ``q (x Wk)ᵀ`` is ``(q Wkᵀ) xᵀ``, and ``a (x Wv)``
    is ``(a x) Wv``. The image then takes part in two products with H * T columns and is never
    projected; nothing is left that could be computed once a picture.
    """

    def __init__(self, dim: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.heads = heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from tokens q (P, T, C) to tokens k and v (P, T', C); gives (P, T, C)."""
        q, k, v = self._split(self.q_proj(q)), self._split(self.k_proj(k)), self.v_proj(v)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        # Written out: with few tokens this is faster on CPUs than the fused call.
        return self._project(scores.softmax(-1) @ self._split(v))

    def fold_queries(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of tokens q (P, T, C), the keys' projection folded in: for ``attend_image``.

        Returns:
            Weight (P, H * T, C) and bias (P, H * T, 1) of the scores.
        """
        q = self._split(self.q_proj(q))
        q = q * q.shape[-1] ** -0.5
        weight, bias = self._heads(self.k_proj)
        return (q @ weight).flatten(1, 2), (q @ bias[..., None]).flatten(1, 2)

    @staticmethod
    def attend_image(queries: tuple[Tensor, Tensor], k_image: Tensor, v_image: Tensor) -> Tensor:
        """Attend to an image, (P, n, C) of keys and of values: for ``project_image``.

        Returns:
            The image as each row of queries sees it, (P, H * T, C), float32 or wider.
        """
        weight, bias = queries
        scores = wide(torch.baddbmm(bias, weight, k_image.transpose(1, 2)))
        return wide(scores.softmax(-1).to(v_image.dtype) @ v_image)

    def project_image(self, seen: Tensor) -> Tensor:
        """Attention to an image, (P, T, C), of what ``attend_image`` gave."""
        seen = seen.to(self.v_proj.weight.dtype).unflatten(1, (self.heads, -1))
        weight, bias = self._heads(self.v_proj)
        return self._project(seen @ weight.transpose(1, 2) + bias[:, None])

    def fold_keys_values(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys k and values v of tokens (P, T, C), projections folded in: for ``attend_tokens``.

        Returns:
            Weight (P, H * T, C) and bias (P, H * T, 1) of the scores, and values (P, H * T, C).
        """
        k = self._split(self.k_proj(k))
        k = k * k.shape[-1] ** -0.5
        weight, bias = self._heads(self.q_proj)
        # The weights of each head sum to 1, so every head brings its share of the bias.
        out_weight = self.out_proj.weight.t().unflatten(0, (self.heads, -1))
        values = self._split(self.v_proj(v)) @ out_weight + self.out_proj.bias / self.heads
        return (k @ weight).flatten(1, 2), (k @ bias[..., None]).flatten(1, 2), values.flatten(1, 2)

    def attend_tokens(
        self, image: Tensor, q_image: Tensor, keys_values: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Add to a part of the image (P, n, C) what q_image (P, n, C) attends to in tokens."""
        weight, bias, values = keys_values
        scores = torch.baddbmm(bias, weight, q_image.transpose(1, 2))
        # A softmax along the middle: along T in memory it takes ten times as long on CPUs.
        attention = scores.unflatten(1, (self.heads, -1)).softmax(2).flatten(1, 2)
        return torch.baddbmm(image, attention.transpose(1, 2), values)

    def _split(self, x: Tensor) -> Tensor:
        """(P, T, H * d) to (P, H, T, d)."""
        split: Tensor = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return split

    def _project(self, x: Tensor) -> Tensor:
        projected: Tensor = self.out_proj(x.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weights (H, d, C) and bias (H, d) of each head."""
        return layer.weight.unflatten(0, (self.heads, -1)), layer.bias.unflatten(
            0, (self.heads, -1)
        )


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, to the image, pass an MLP; then the image attends to them."""

    def __init__(self, dim: int, heads: int, mlp: int, first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp, F.relu)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, heads, downsample=2)
        self.first = first

    def self_attend(self, tokens: Tensor, token_pe: Tensor) -> Tensor:
        """Tokens (P, T, C) before they attend to the image."""
        if self.first:
            # As in SAM: the first block's self-attention replaces the tokens.
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        normed: Tensor = self.norm1(tokens)
        return normed

    def update(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Tokens (P, T, C) after they attended to the image."""
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.project_image(seen))
        normed: Tensor = self.norm3(tokens + self.mlp(tokens))
        return normed


class TwoWayTransformer(nn.Module):
    """Blocks of two-way attention and a last look of the tokens at the image.

    Whatever image tokens do needs only themselves and the prompt's: where a kernel runs, a few of
    them take the whole step from one block to the next at a time.
    """

    def __init__(self, dim: int, depth: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, heads, mlp, i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(dim, heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(
        self, image: Tensor, image_pe: Tensor, tokens: Tensor, dense: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Give updated tokens (P, T, C) and image tokens (P, h*w, C).

        Args:
            image: (P, h*w, C).
            image_pe: positions, (1, h*w, C).
            tokens: (P, T, C).
            dense: what is added to the image, (P, h*w, C).
        """
        token_pe = tokens = tokens.to(self.norm_final_attn.weight.dtype)
        keys_values, written_by = None, None
        for layer in cast("list[TwoWayBlock]", list(self.layers)):
            tokens = layer.self_attend(tokens, token_pe)
            queries = layer.cross_attn_token_to_image.fold_queries(tokens + token_pe)
            image, seen = _step(image, image_pe, written_by, keys_values, queries, dense)
            dense = None
            tokens = layer.update(tokens, seen)
            keys_values = layer.cross_attn_image_to_token.fold_keys_values(
                tokens + token_pe, tokens
            )
            written_by = layer
        queries = self.final_attn_token_to_image.fold_queries(tokens + token_pe)
        image, seen = _step(image, image_pe, written_by, keys_values, queries, dense)
        attended = self.final_attn_token_to_image.project_image(seen)
        return self.norm_final_attn(tokens + attended), image


def _step(
    image: Tensor,
    image_pe: Tensor,
    layer: TwoWayBlock | None,
    keys_values: tuple[Tensor, Tensor, Tensor] | None,
    queries: tuple[Tensor, Tensor],
    dense: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Image tokens attend to a block's tokens, if there are; then queries to them.

    What is added to the image is added in the first step, which has no block's tokens.
    """
    if not in_tiles(image):
        if dense is not None:
            image = image + dense
        if layer is not None and keys_values is not None:
            weight, bias, values = (x.to(image.dtype) for x in keys_values)
            attend = layer.cross_attn_image_to_token.attend_tokens
            image = layer.norm4(attend(image, image + image_pe, (weight, bias, values)))
        weight, bias = (x.to(image.dtype) for x in queries)
        return image, Attention.attend_image((weight, bias), image + image_pe, image)
    from anyres.ops import two_way_cpu

    known = None
    if layer is not None and keys_values is not None:
        heads, norm = layer.cross_attn_image_to_token.heads, layer.norm4
        known = two_way_cpu.KeysValues(*keys_values, heads, (norm.weight, norm.bias, norm.eps))
    return two_way_cpu.step(image, image_pe, dense, known, queries)


def in_tiles(image: Tensor) -> bool:
    """Whether kernels run for image tokens (.., C)."""
    return runs_in_parts(image) and block.decoder_runs_in_tiles(image.dtype, image.shape[-1])
