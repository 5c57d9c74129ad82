"""Forward kernel of the inner block and its halves (arXiv 2103.00112, Eqs. 6-7)."""

import triton
import triton.language as tl

from .tiles import (
    affine,
    clamped_rows,
    dot,
    gelu,
    load_matrix,
    load_rows,
    load_vector,
    mix,
    normalise_rows,
    probabilities,
    project_head,
    scale_rows,
    store_rows,
)


@triton.jit
def attention_branch(
    x,
    norm1_weight_ptr,
    norm1_bias_ptr,
    qk_weight_ptr,
    qk_bias_ptr,
    v_weight_ptr,
    v_bias_ptr,
    proj_weight_ptr,
    proj_bias_ptr,
    eps,
    S: tl.constexpr,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """proj(MSA(LN(x))) of a tile, Eq. 6."""
    HEAD_DIM: tl.constexpr = C // HEADS
    GROUPS: tl.constexpr = BLOCK_TOKENS // SPAN
    xhat, _ = normalise_rows(x, eps, C, BLOCK_C)
    normed = affine(xhat, norm1_weight_ptr, norm1_bias_ptr, C, BLOCK_C).to(DTYPE)
    branch = tl.zeros((BLOCK_TOKENS, BLOCK_C), dtype=tl.float32)
    branch += load_vector(proj_bias_ptr, 0, C, BLOCK_C)[None, :]
    for head in tl.range(0, HEADS):
        first = head * HEAD_DIM
        q = project_head(
            normed, qk_weight_ptr, qk_bias_ptr, first,
            C, HEAD_DIM, SPAN, GROUPS, BLOCK_C, BLOCK_HEAD, DTYPE, PRECISION,
        )  # fmt: skip
        k = project_head(
            normed, qk_weight_ptr, qk_bias_ptr, C + first,
            C, HEAD_DIM, SPAN, GROUPS, BLOCK_C, BLOCK_HEAD, DTYPE, PRECISION,
        )  # fmt: skip
        v = project_head(
            normed, v_weight_ptr, v_bias_ptr, first,
            C, HEAD_DIM, SPAN, GROUPS, BLOCK_C, BLOCK_HEAD, DTYPE, PRECISION,
        )  # fmt: skip
        weights = probabilities(q, k, HEAD_DIM**-0.5, S, SPAN, DTYPE, PRECISION)
        mixed = mix(weights, v, S, SPAN, GROUPS, BLOCK_HEAD, DTYPE, PRECISION)
        mixed = tl.reshape(mixed, (BLOCK_TOKENS, BLOCK_HEAD))
        proj = load_matrix(proj_weight_ptr, 0, C, first, first + HEAD_DIM, C, BLOCK_C, BLOCK_HEAD)
        branch += dot(mixed, tl.trans(proj), DTYPE, PRECISION)
    return branch


@triton.jit
def mlp_branch(
    x,
    norm2_weight_ptr,
    norm2_bias_ptr,
    fc1_weight_ptr,
    fc1_bias_ptr,
    fc2_weight_ptr,
    fc2_bias_ptr,
    eps,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """MLP(LN(x)) of a tile, Eq. 7, hidden channels taken BLOCK_HIDDEN at a time."""
    xhat, _ = normalise_rows(x, eps, C, BLOCK_C)
    normed = affine(xhat, norm2_weight_ptr, norm2_bias_ptr, C, BLOCK_C).to(DTYPE)
    branch = tl.zeros((BLOCK_TOKENS, BLOCK_C), dtype=tl.float32)
    branch += load_vector(fc2_bias_ptr, 0, C, BLOCK_C)[None, :]
    for first in tl.range(0, HIDDEN, BLOCK_HIDDEN):
        fc1 = load_matrix(fc1_weight_ptr, first, HIDDEN, 0, C, C, BLOCK_HIDDEN, BLOCK_C)
        hidden = dot(normed, tl.trans(fc1), DTYPE, PRECISION)
        hidden = gelu(hidden + load_vector(fc1_bias_ptr, first, HIDDEN, BLOCK_HIDDEN)[None, :])
        fc2 = load_matrix(fc2_weight_ptr, 0, C, first, HIDDEN, HIDDEN, BLOCK_C, BLOCK_HIDDEN)
        branch += dot(hidden, tl.trans(fc2), DTYPE, PRECISION)
    return branch


@triton.jit
def inner_fwd_kernel(
    x_ptr,  # (tokens, C)
    out_ptr,  # (tokens, C)
    mid_ptr,  # (tokens, C) or None
    norm1_weight_ptr,  # the weights of an absent half are None
    norm1_bias_ptr,
    qk_weight_ptr,
    qk_bias_ptr,
    v_weight_ptr,
    v_bias_ptr,
    proj_weight_ptr,
    proj_bias_ptr,
    norm2_weight_ptr,
    norm2_bias_ptr,
    fc1_weight_ptr,
    fc1_bias_ptr,
    fc2_weight_ptr,
    fc2_bias_ptr,
    drop_path_attn_ptr,  # (tokens / S,) or None
    drop_path_mlp_ptr,  # (tokens / S,) or None
    num_tokens,
    eps,
    S: tl.constexpr,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    HIDDEN: tl.constexpr,
    SPAN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """y = x + MSA(LN(x)), then y + MLP(LN(y)); a program computes one tile of whole sequences."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    rows, exists = clamped_rows(tl.program_id(0), num_tokens, BLOCK_TOKENS)
    x = load_rows(x_ptr, rows, C, BLOCK_C)
    if proj_weight_ptr is not None:
        branch = attention_branch(
            x, norm1_weight_ptr, norm1_bias_ptr, qk_weight_ptr, qk_bias_ptr, v_weight_ptr,
            v_bias_ptr, proj_weight_ptr, proj_bias_ptr, eps,
            S, C, HEADS, SPAN, BLOCK_TOKENS, BLOCK_C, BLOCK_HEAD, DTYPE, PRECISION,
        )  # fmt: skip
        x += scale_rows(branch, drop_path_attn_ptr, rows, S)
        if mid_ptr is not None:
            store_rows(mid_ptr, x, rows, exists, C, BLOCK_C)
    if fc1_weight_ptr is not None:
        branch = mlp_branch(
            x, norm2_weight_ptr, norm2_bias_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr,
            fc2_bias_ptr, eps,
            C, HIDDEN, BLOCK_TOKENS, BLOCK_C, BLOCK_HIDDEN, DTYPE, PRECISION,
        )  # fmt: skip
        x += scale_rows(branch, drop_path_mlp_ptr, rows, S)
    store_rows(out_ptr, x, rows, exists, C, BLOCK_C)
