"""Backward kernels of the two halves of the inner block (arXiv 2103.00112, Eqs. 6-7).

Everything is computed again from a half's input. The gradient of the input and the gradients of
the weights come from separate kernels: a program of the second owns one head, or one block of
hidden channels, so that its weight gradients stay in registers while it walks over every n-th
tile. It stores them in a row of its own of `partial`, laid out as the operator's flat weight
gradient behind the norm's two slots; rows are summed in a fixed order afterwards. Gradients of
weights that follow a LayerNorm are taken against its normalised rows xhat: those of the layer and
of the norm's affine part both follow from them (see `gradients.py`).
"""

import triton
import triton.language as tl

from .tiles import (
    affine,
    clamped_rows,
    dot,
    gelu_and_slope,
    load_existing_rows,
    load_matrix,
    load_rows,
    load_vector,
    mix,
    normalise_rows,
    normalise_rows_backward,
    probabilities,
    project_head,
    same_sequence,
    scale_rows,
    store_matrix,
    store_rows,
    store_vector,
)


@triton.jit
def attention_head_backward(
    normed,
    dbranch,
    qk_weight_ptr,
    qk_bias_ptr,
    v_weight_ptr,
    v_bias_ptr,
    proj_weight_ptr,
    first,
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
    """Gradients of q, k, v of the head whose channels begin at `first`, and its output.

    `dbranch` is the gradient of the attention branch. All results are (tokens, head).
    """
    HEAD_DIM: tl.constexpr = C // HEADS
    GROUPS: tl.constexpr = BLOCK_TOKENS // SPAN
    SCALE: tl.constexpr = HEAD_DIM**-0.5
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
    weights = probabilities(q, k, SCALE, S, SPAN, DTYPE, PRECISION)
    mixed = mix(weights, v, S, SPAN, GROUPS, BLOCK_HEAD, DTYPE, PRECISION)

    proj = load_matrix(proj_weight_ptr, 0, C, first, first + HEAD_DIM, C, BLOCK_C, BLOCK_HEAD)
    dmixed = tl.reshape(dot(dbranch, proj, DTYPE, PRECISION), (GROUPS, SPAN, BLOCK_HEAD))
    dweights = dot(dmixed, tl.permute(v, (0, 2, 1)), DTYPE, PRECISION)
    dweights = same_sequence(dweights, 0.0, S, SPAN)
    dscores = weights * (dweights - tl.sum(weights * dweights, axis=2)[:, :, None]) * SCALE
    dscores = same_sequence(dscores, 0.0, S, SPAN)
    dq = mix(dscores, k, S, SPAN, GROUPS, BLOCK_HEAD, DTYPE, PRECISION)
    dscores, weights = tl.permute(dscores, (0, 2, 1)), tl.permute(weights, (0, 2, 1))
    dk = mix(dscores, q, S, SPAN, GROUPS, BLOCK_HEAD, DTYPE, PRECISION)
    dv = mix(weights, dmixed, S, SPAN, GROUPS, BLOCK_HEAD, DTYPE, PRECISION)
    return (
        tl.reshape(dq, (BLOCK_TOKENS, BLOCK_HEAD)),
        tl.reshape(dk, (BLOCK_TOKENS, BLOCK_HEAD)),
        tl.reshape(dv, (BLOCK_TOKENS, BLOCK_HEAD)),
        tl.reshape(mixed, (BLOCK_TOKENS, BLOCK_HEAD)),
    )


@triton.jit
def inner_attention_bwd_dx_kernel(
    dy_ptr,  # (tokens, C)
    x_ptr,  # (tokens, C)
    dx_ptr,  # (tokens, C)
    norm1_weight_ptr,
    norm1_bias_ptr,
    qk_weight_ptr,
    qk_bias_ptr,
    v_weight_ptr,
    v_bias_ptr,
    proj_weight_ptr,
    drop_path_ptr,  # (tokens / S,) or None
    num_tokens,
    eps,
    S: tl.constexpr,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    SPAN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
):
    """Gradient of x in y = x + MSA(LN(x)); a program computes one tile of whole sequences."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    HEAD_DIM: tl.constexpr = C // HEADS
    rows, exists = clamped_rows(tl.program_id(0), num_tokens, BLOCK_TOKENS)
    xhat, rstd = normalise_rows(load_rows(x_ptr, rows, C, BLOCK_C), eps, C, BLOCK_C)
    normed = affine(xhat, norm1_weight_ptr, norm1_bias_ptr, C, BLOCK_C).to(DTYPE)
    dy = load_existing_rows(dy_ptr, rows, exists, C, BLOCK_C)
    dbranch = scale_rows(dy, drop_path_ptr, rows, S).to(DTYPE)
    dnormed = tl.zeros((BLOCK_TOKENS, BLOCK_C), dtype=tl.float32)
    for head in tl.range(0, HEADS):
        first = head * HEAD_DIM
        end = first + HEAD_DIM
        dq, dk, dv, _ = attention_head_backward(
            normed, dbranch, qk_weight_ptr, qk_bias_ptr, v_weight_ptr, v_bias_ptr,
            proj_weight_ptr, first,
            S, C, HEADS, SPAN, BLOCK_TOKENS, BLOCK_C, BLOCK_HEAD, DTYPE, PRECISION,
        )  # fmt: skip
        weight = load_matrix(qk_weight_ptr, first, end, 0, C, C, BLOCK_HEAD, BLOCK_C)
        dnormed += dot(dq, weight, DTYPE, PRECISION)
        weight = load_matrix(qk_weight_ptr, C + first, C + end, 0, C, C, BLOCK_HEAD, BLOCK_C)
        dnormed += dot(dk, weight, DTYPE, PRECISION)
        weight = load_matrix(v_weight_ptr, first, end, 0, C, C, BLOCK_HEAD, BLOCK_C)
        dnormed += dot(dv, weight, DTYPE, PRECISION)
    dxhat = dnormed * load_vector(norm1_weight_ptr, 0, C, BLOCK_C)[None, :]
    dx = dy + normalise_rows_backward(dxhat, xhat, rstd, C)
    store_rows(dx_ptr, dx, rows, exists, C, BLOCK_C)


@triton.jit
def inner_attention_bwd_dw_kernel(
    dy_ptr,  # (tokens, C)
    x_ptr,  # (tokens, C)
    partial_ptr,  # (programs, 4C * C + 4C)
    norm1_weight_ptr,
    norm1_bias_ptr,
    qk_weight_ptr,
    qk_bias_ptr,
    v_weight_ptr,
    v_bias_ptr,
    proj_weight_ptr,
    drop_path_ptr,  # (tokens / S,) or None
    num_tokens,
    eps,
    S: tl.constexpr,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    SPAN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
):
    """Partial weight gradients of one head, program_id(1), over every num_programs(0)-th tile."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    HEAD_DIM: tl.constexpr = C // HEADS
    first = tl.program_id(1) * HEAD_DIM
    # Transposed, so that one operand, xhat, serves all three.
    dq_weight = tl.zeros((BLOCK_C, BLOCK_HEAD), dtype=tl.float32)
    dk_weight = tl.zeros((BLOCK_C, BLOCK_HEAD), dtype=tl.float32)
    dv_weight = tl.zeros((BLOCK_C, BLOCK_HEAD), dtype=tl.float32)
    dproj_weight = tl.zeros((BLOCK_C, BLOCK_HEAD), dtype=tl.float32)
    dq_bias = tl.zeros((BLOCK_HEAD,), dtype=tl.float32)
    dk_bias = tl.zeros((BLOCK_HEAD,), dtype=tl.float32)
    dv_bias = tl.zeros((BLOCK_HEAD,), dtype=tl.float32)
    dproj_bias = tl.zeros((BLOCK_C,), dtype=tl.float32)
    num_tiles = tl.cdiv(num_tokens, BLOCK_TOKENS)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        rows, exists = clamped_rows(tile, num_tokens, BLOCK_TOKENS)
        xhat, _ = normalise_rows(load_rows(x_ptr, rows, C, BLOCK_C), eps, C, BLOCK_C)
        normed = affine(xhat, norm1_weight_ptr, norm1_bias_ptr, C, BLOCK_C).to(DTYPE)
        dbranch = load_existing_rows(dy_ptr, rows, exists, C, BLOCK_C)
        dbranch = scale_rows(dbranch, drop_path_ptr, rows, S)
        dproj_bias += tl.sum(dbranch, axis=0)
        dbranch = dbranch.to(DTYPE)
        dq, dk, dv, mixed = attention_head_backward(
            normed, dbranch, qk_weight_ptr, qk_bias_ptr, v_weight_ptr, v_bias_ptr,
            proj_weight_ptr, first,
            S, C, HEADS, SPAN, BLOCK_TOKENS, BLOCK_C, BLOCK_HEAD, DTYPE, PRECISION,
        )  # fmt: skip
        xhat = tl.trans(xhat.to(DTYPE))
        dq_weight += dot(xhat, dq, DTYPE, PRECISION)
        dk_weight += dot(xhat, dk, DTYPE, PRECISION)
        dv_weight += dot(xhat, dv, DTYPE, PRECISION)
        dproj_weight += dot(tl.trans(dbranch), mixed, DTYPE, PRECISION)
        dq_bias += tl.sum(dq, axis=0)
        dk_bias += tl.sum(dk, axis=0)
        dv_bias += tl.sum(dv, axis=0)
    end = first + HEAD_DIM
    out_ptr = partial_ptr + tl.program_id(0).to(tl.int64) * (4 * C * C + 4 * C)
    store_matrix(out_ptr, tl.trans(dq_weight), first, end, 0, C, C, BLOCK_HEAD, BLOCK_C)
    store_matrix(out_ptr, tl.trans(dk_weight), C + first, C + end, 0, C, C, BLOCK_HEAD, BLOCK_C)
    out_ptr += 2 * C * C
    store_vector(out_ptr, dq_bias, first, end, BLOCK_HEAD)
    store_vector(out_ptr, dk_bias, C + first, C + end, BLOCK_HEAD)
    out_ptr += 2 * C
    store_matrix(out_ptr, tl.trans(dv_weight), first, end, 0, C, C, BLOCK_HEAD, BLOCK_C)
    out_ptr += C * C
    store_vector(out_ptr, dv_bias, first, end, BLOCK_HEAD)
    out_ptr += C
    store_matrix(out_ptr, dproj_weight, 0, C, first, end, C, BLOCK_C, BLOCK_HEAD)
    if first == 0:
        store_vector(out_ptr + C * C, dproj_bias, 0, C, BLOCK_C)


@triton.jit
def inner_mlp_bwd_dx_kernel(
    dy_ptr,  # (tokens, C)
    x_ptr,  # (tokens, C)
    dx_ptr,  # (tokens, C)
    norm2_weight_ptr,
    norm2_bias_ptr,
    fc1_weight_ptr,
    fc1_bias_ptr,
    fc2_weight_ptr,
    drop_path_ptr,  # (tokens / S,) or None
    num_tokens,
    eps,
    S: tl.constexpr,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """Gradient of x in y = x + MLP(LN(x)); a program computes one tile of tokens."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    rows, exists = clamped_rows(tl.program_id(0), num_tokens, BLOCK_TOKENS)
    xhat, rstd = normalise_rows(load_rows(x_ptr, rows, C, BLOCK_C), eps, C, BLOCK_C)
    normed = affine(xhat, norm2_weight_ptr, norm2_bias_ptr, C, BLOCK_C).to(DTYPE)
    dy = load_existing_rows(dy_ptr, rows, exists, C, BLOCK_C)
    dbranch = scale_rows(dy, drop_path_ptr, rows, S).to(DTYPE)
    dnormed = tl.zeros((BLOCK_TOKENS, BLOCK_C), dtype=tl.float32)
    for first in tl.range(0, HIDDEN, BLOCK_HIDDEN):
        fc1 = load_matrix(fc1_weight_ptr, first, HIDDEN, 0, C, C, BLOCK_HIDDEN, BLOCK_C)
        hidden = dot(normed, tl.trans(fc1), DTYPE, PRECISION)
        hidden += load_vector(fc1_bias_ptr, first, HIDDEN, BLOCK_HIDDEN)[None, :]
        _, slope = gelu_and_slope(hidden)
        fc2 = load_matrix(fc2_weight_ptr, 0, C, first, HIDDEN, HIDDEN, BLOCK_C, BLOCK_HIDDEN)
        dhidden = dot(dbranch, fc2, DTYPE, PRECISION) * slope
        dnormed += dot(dhidden, fc1, DTYPE, PRECISION)
    dxhat = dnormed * load_vector(norm2_weight_ptr, 0, C, BLOCK_C)[None, :]
    dx = dy + normalise_rows_backward(dxhat, xhat, rstd, C)
    store_rows(dx_ptr, dx, rows, exists, C, BLOCK_C)


@triton.jit
def inner_mlp_bwd_dw_kernel(
    dy_ptr,  # (tokens, C)
    x_ptr,  # (tokens, C)
    partial_ptr,  # (programs, 2 HIDDEN * C + HIDDEN + C)
    norm2_weight_ptr,
    norm2_bias_ptr,
    fc1_weight_ptr,
    fc1_bias_ptr,
    fc2_weight_ptr,
    drop_path_ptr,  # (tokens / S,) or None
    num_tokens,
    eps,
    S: tl.constexpr,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """Partial weight gradients of BLOCK_HIDDEN hidden channels, the program_id(1)-th block."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    first = tl.program_id(1) * BLOCK_HIDDEN
    fc1 = load_matrix(fc1_weight_ptr, first, HIDDEN, 0, C, C, BLOCK_HIDDEN, BLOCK_C)
    fc1_bias = load_vector(fc1_bias_ptr, first, HIDDEN, BLOCK_HIDDEN)
    fc2 = load_matrix(fc2_weight_ptr, 0, C, first, HIDDEN, HIDDEN, BLOCK_C, BLOCK_HIDDEN)
    dfc1_weight = tl.zeros((BLOCK_C, BLOCK_HIDDEN), dtype=tl.float32)
    dfc2_weight = tl.zeros((BLOCK_C, BLOCK_HIDDEN), dtype=tl.float32)
    dfc1_bias = tl.zeros((BLOCK_HIDDEN,), dtype=tl.float32)
    dfc2_bias = tl.zeros((BLOCK_C,), dtype=tl.float32)
    num_tiles = tl.cdiv(num_tokens, BLOCK_TOKENS)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        rows, exists = clamped_rows(tile, num_tokens, BLOCK_TOKENS)
        xhat, _ = normalise_rows(load_rows(x_ptr, rows, C, BLOCK_C), eps, C, BLOCK_C)
        normed = affine(xhat, norm2_weight_ptr, norm2_bias_ptr, C, BLOCK_C)
        dbranch = load_existing_rows(dy_ptr, rows, exists, C, BLOCK_C)
        dbranch = scale_rows(dbranch, drop_path_ptr, rows, S)
        dfc2_bias += tl.sum(dbranch, axis=0)
        dbranch = dbranch.to(DTYPE)
        hidden = dot(normed, tl.trans(fc1), DTYPE, PRECISION) + fc1_bias[None, :]
        activation, slope = gelu_and_slope(hidden)
        dfc2_weight += dot(tl.trans(dbranch), activation, DTYPE, PRECISION)
        dhidden = dot(dbranch, fc2, DTYPE, PRECISION) * slope
        dfc1_weight += dot(tl.trans(xhat), dhidden, DTYPE, PRECISION)
        dfc1_bias += tl.sum(dhidden, axis=0)
    size = 2 * HIDDEN * C + HIDDEN + C
    out_ptr = partial_ptr + tl.program_id(0).to(tl.int64) * size
    store_matrix(out_ptr, tl.trans(dfc1_weight), first, HIDDEN, 0, C, C, BLOCK_HIDDEN, BLOCK_C)
    out_ptr += HIDDEN * C
    store_vector(out_ptr, dfc1_bias, first, HIDDEN, BLOCK_HIDDEN)
    out_ptr += HIDDEN
    store_matrix(out_ptr, dfc2_weight, 0, C, first, HIDDEN, HIDDEN, BLOCK_C, BLOCK_HIDDEN)
    if first == 0:
        store_vector(out_ptr + HIDDEN * C, dfc2_bias, 0, C, BLOCK_C)
