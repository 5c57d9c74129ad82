"""Register tiles that the Triton kernels share: rows, LayerNorm, GELU, attention of one head.

A tile holds BLOCK_TOKENS rows of BLOCK_C channels in float32; BLOCK_C is C rounded up to a power of
two and the channels beyond C are zero. Attention sees a tile as groups of SPAN = max(S, 16) rows,
since a matrix product needs 16: with S < 16 a group holds several sequences and what crosses from
one to another is masked. Tensors in memory are touched only by loads, stores and casts, which is
all that Triton's interpreter gets right for bfloat16.
"""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b on operands rounded to DTYPE, accumulated in float32; matrices or batches of them.

    Triton gives each matrix of a batch to warps of its own, so that a batch of one would be
    computed by every warp: it is multiplied as a plain matrix.
    """
    if len(a.shape) == 3 and a.shape[0] == 1:
        a, b = tl.reshape(a, (a.shape[1], a.shape[2])), tl.reshape(b, (b.shape[1], b.shape[2]))
        product = tl.dot(a.to(DTYPE), b.to(DTYPE), input_precision=PRECISION)
        product = tl.reshape(product, (1, product.shape[0], product.shape[1]))
    else:
        product = tl.dot(a.to(DTYPE), b.to(DTYPE), input_precision=PRECISION)
    return product


@triton.jit
def clamped_rows(tile, num_rows, BLOCK_ROWS: tl.constexpr):
    """Row numbers of a tile and which of them exist; the others repeat the last row.

    Repeated rows are as finite as a real one, so that nothing but their stores, and gradients
    that enter by them, has to be masked.
    """
    rows = tl.full((BLOCK_ROWS,), BLOCK_ROWS, tl.int64) * tile + tl.arange(0, BLOCK_ROWS)
    return tl.minimum(rows, num_rows - 1), rows < num_rows


@triton.jit
def load_rows(ptr, rows, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """(rows, C) as a float32 tile."""
    channels = tl.arange(0, BLOCK_C)[None, :]
    values = tl.load(ptr + rows[:, None] * C + channels, mask=channels < C, other=0.0)
    return values.to(tl.float32)


@triton.jit
def load_existing_rows(ptr, rows, exists, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """(rows, C) as a float32 tile with zeros where a row does not exist."""
    channels = tl.arange(0, BLOCK_C)[None, :]
    mask = exists[:, None] & (channels < C)
    return tl.load(ptr + rows[:, None] * C + channels, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rows(ptr, values, rows, exists, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write a tile to (rows, C) in the dtype of the memory."""
    channels = tl.arange(0, BLOCK_C)[None, :]
    mask = exists[:, None] & (channels < C)
    tl.store(ptr + rows[:, None] * C + channels, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_vector(ptr, first, end, BLOCK: tl.constexpr):
    """Elements first .. end of a vector in float32, zero beyond."""
    index = first + tl.arange(0, BLOCK)
    return tl.load(ptr + index, mask=index < end, other=0.0).to(tl.float32)


@triton.jit
def load_matrix(
    ptr,
    first_row,
    end_row,
    first_column,
    end_column,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """A block of a row-major matrix in the matrix' dtype, zero beyond the ends."""
    rows = first_row + tl.arange(0, BLOCK_ROWS)[:, None]
    columns = first_column + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = (rows < end_row) & (columns < end_column)
    return tl.load(ptr + rows * STRIDE + columns, mask=mask, other=0.0)


@triton.jit
def store_matrix(
    ptr,
    values,
    first_row,
    end_row,
    first_column,
    end_column,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write a block of a row-major matrix; the counterpart of load_matrix."""
    rows = first_row + tl.arange(0, BLOCK_ROWS)[:, None]
    columns = first_column + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = (rows < end_row) & (columns < end_column)
    tl.store(ptr + rows * STRIDE + columns, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_vector(ptr, values, first, end, BLOCK: tl.constexpr):
    """Write elements first .. end of a vector."""
    index = first + tl.arange(0, BLOCK)
    tl.store(ptr + index, values.to(ptr.dtype.element_ty), mask=index < end)


@triton.jit
def normalise_rows(x, eps, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """LayerNorm without its affine part: (xhat, 1 / standard deviation) of the rows of a tile."""
    mean = tl.sum(x, axis=1) / C
    centred = x - mean[:, None]
    if BLOCK_C != C:
        centred = tl.where(tl.arange(0, BLOCK_C)[None, :] < C, centred, 0.0)
    variance = tl.sum(centred * centred, axis=1) / C
    rstd = tl.rsqrt(variance + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def normalise_rows_backward(dxhat, xhat, rstd, C: tl.constexpr):
    """Gradient of the input of normalise_rows from that of xhat."""
    along_mean = tl.sum(dxhat, axis=1) / C
    along_xhat = tl.sum(dxhat * xhat, axis=1) / C
    return rstd[:, None] * (dxhat - along_mean[:, None] - xhat * along_xhat[:, None])


@triton.jit
def affine(xhat, weight_ptr, bias_ptr, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The affine part of LayerNorm."""
    weight = load_vector(weight_ptr, 0, C, BLOCK_C)
    bias = load_vector(bias_ptr, 0, C, BLOCK_C)
    return xhat * weight[None, :] + bias[None, :]


@triton.jit
def gelu(x):
    """x Phi(x), exact."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_and_slope(x):
    """gelu(x) and its derivative Phi(x) + x phi(x)."""
    cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp2(x * x * -0.7213475204444817)
    return x * cdf, cdf + x * density


@triton.jit
def scale_rows(values, factors_ptr, rows, S: tl.constexpr):
    """Multiply the rows of each sequence by its drop-path factor, where there are factors."""
    if factors_ptr is not None:
        values *= tl.load(factors_ptr + rows // S)[:, None]
    return values


@triton.jit
def same_sequence(values, fill, S: tl.constexpr, SPAN: tl.constexpr):
    """(groups, SPAN, SPAN) values with `fill` where row and column are of different sequences."""
    if S != SPAN:
        sequence = tl.arange(0, SPAN) // S
        inside = sequence[:, None] == sequence[None, :]
        values = tl.where(inside[None, :, :], values, fill)
    return values


@triton.jit
def mix(
    weights,
    values,
    S: tl.constexpr,
    SPAN: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """weights @ values within each sequence: (groups, SPAN, SPAN) x (groups, SPAN, BLOCK).

    A weight of zero does not silence an infinity or NaN. Where a group holds several sequences,
    those values are therefore taken out of the product and added to their own sequence only.
    """
    if S == SPAN:
        mixed = dot(weights, values, DTYPE, PRECISION)
    else:
        values = values.to(DTYPE).to(tl.float32)
        finite = tl.abs(values) < float("inf")
        spoilt = tl.reshape(tl.where(finite, 0.0, values), (GROUPS * (SPAN // S), S, BLOCK))
        spoilt = tl.broadcast_to(
            tl.sum(spoilt, axis=1, keep_dims=True), (GROUPS * (SPAN // S), S, BLOCK)
        )
        mixed = dot(weights, tl.where(finite, values, 0.0), DTYPE, PRECISION)
        mixed += tl.reshape(spoilt, (GROUPS, SPAN, BLOCK))
    return mixed


@triton.jit
def probabilities(
    q,
    k,
    SCALE: tl.constexpr,
    S: tl.constexpr,
    SPAN: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """softmax(SCALE q k^T) of one head, Eq. 1: (groups, SPAN, SPAN)."""
    scores = dot(q, tl.permute(k, (0, 2, 1)), DTYPE, PRECISION)
    scores = same_sequence(scores, float("-inf"), S, SPAN)
    largest = tl.max(scores, axis=2)
    weights = tl.exp2((scores - largest[:, :, None]) * (SCALE * 1.4426950408889634))
    weights = weights / tl.sum(weights, axis=2)[:, :, None]
    return same_sequence(weights, 0.0, S, SPAN)


@triton.jit
def project_head(
    normed,
    weight_ptr,
    bias_ptr,
    first,
    C: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPAN: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q, k or v of one head, whose rows of the weight begin at `first`: (groups, SPAN, head)."""
    end = first + HEAD_DIM
    weight = load_matrix(weight_ptr, first, end, 0, C, C, BLOCK_HEAD, BLOCK_C)
    projected = dot(normed, tl.trans(weight), DTYPE, PRECISION)
    if bias_ptr is not None:
        projected += load_vector(bias_ptr, first, end, BLOCK_HEAD)[None, :]
    return tl.reshape(projected, (GROUPS, SPAN, BLOCK_HEAD))
