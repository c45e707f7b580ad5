"""The casts of current, block, mxfp8 and nvfp4 on both host backends, against the rules written in numpy and ml_dtypes.

Codes and scales are compared byte for byte; where a code is rounded at random, it must be one of the two neighbours. The random
Hadamard matrix is compared up to the signs of its rows, which are found from a matrix of unit vectors.

usage: recipe_casts_test.py LIBRARY
"""

import ctypes
import sys

import ml_dtypes
import numpy as np

INPUT, WEIGHT, GRADIENT = 0, 1, 2
FPROP, DGRAD, WGRAD = 0, 1, 2
E4M3, E5M2, E2M1, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e8m0fnu
FLT_MAX = np.finfo(np.float32).max
OPERANDS = [(INPUT, FPROP), (INPUT, WGRAD), (WEIGHT, FPROP), (WEIGHT, DGRAD), (GRADIENT, DGRAD), (GRADIENT, WGRAD)]
f32 = np.float32


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def quaver_cast(library, backend, recipe, role, gemm, x, scale_shape, scale_type, seed=9):
    rows, cols = x.shape
    codes, values = np.empty(x.shape, np.uint8), np.empty(x.shape, f32)
    scales, tensor = np.empty(scale_shape, scale_type), np.empty(1, f32)
    library.quaver_recipe_cast(backend.encode(), recipe.encode(), role, gemm, pointer(np.ascontiguousarray(x)),
                               ctypes.c_int64(rows), ctypes.c_int64(cols), ctypes.c_uint64(seed), pointer(codes),
                               pointer(scales), pointer(tensor), pointer(values))
    return codes, scales, tensor[0], values


def encode(y, dtype):
    """Saturating, NaN 0x7F (0 for e2m1), as bytes."""
    largest = f32(ml_dtypes.finfo(dtype).max)
    clipped = np.where(np.isnan(y), f32(0), np.clip(y, -largest, largest)).astype(f32)
    codes = clipped.astype(dtype).view(np.uint8)
    return np.where(np.isnan(y), 0 if dtype == E2M1 else 0x7F, codes)


def decode(codes, dtype):
    return codes.astype(np.uint8).view(dtype).astype(f32)


def over_blocks(x, block, function):
    rows, cols = -(-x.shape[0] // block[0]), -(-x.shape[1] // block[1])
    result = np.empty((rows, cols), f32)
    for i in range(rows):
        for j in range(cols):
            result[i, j] = function(x[i * block[0]:(i + 1) * block[0], j * block[1]:(j + 1) * block[1]])
    return result


def spread(blocks, block, shape):
    return np.repeat(np.repeat(blocks, block[0], 0), block[1], 1)[:shape[0], :shape[1]]


def amax(x):
    finite_or_inf = np.abs(x[~np.isnan(x)])
    return f32(finite_or_inf.max()) if finite_or_inf.size else f32(0)


def current_scale(a, largest):
    if not a > 0 or not np.isfinite(a):
        return f32(1)
    return min(f32(largest) / a, FLT_MAX)


def mx_byte(a, largest):
    """ceil(log2(a / largest)) + 127 by ml_dtypes' neighbours, not by bits."""
    ratio = f32(a) / f32(largest)
    candidates = np.arange(255, dtype=np.uint8)
    above = candidates.view(E8M0).astype(np.float64) >= np.float64(ratio)
    return candidates[above][0] if above.any() else 254


def block_of(recipe, role, gemm):
    along_rows = gemm == WGRAD or (gemm == DGRAD and role == WEIGHT)
    size = {"block": 128, "mxfp8": 32, "nvfp4": 16}[recipe]
    if role == WEIGHT and recipe != "mxfp8":
        return size, size
    return (size, 1) if along_rows else (1, size)


def bf16(x):
    return x.astype(ml_dtypes.bfloat16).astype(f32)


def same(a, b):
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a), np.signbit(b))


def check_one_scale(library, backend, x, role, gemm):
    dtype = E5M2 if role == GRADIENT else E4M3
    scale = current_scale(amax(x), ml_dtypes.finfo(dtype).max)
    codes, _, scale_inv, _ = quaver_cast(library, backend, "current", role, gemm, x, 1, f32)
    assert scale_inv == f32(1) / scale
    assert np.array_equal(codes, encode(x * scale, dtype))


def check_blocks(library, backend, recipe, x, role, gemm):
    block = block_of(recipe, role, gemm)
    amaxes = over_blocks(x, block, amax)
    if recipe == "block":
        scales = np.vectorize(lambda a: np.exp2(np.floor(np.log2(np.float64(current_scale(a, 448))))))(amaxes)
        expected = (1 / scales).astype(f32)
        scale_inv = expected
    else:
        expected = np.vectorize(lambda a: mx_byte(a, 448))(amaxes).astype(np.uint8)
        scale_inv = expected.view(E8M0).astype(f32)
    codes, found, _, values = quaver_cast(library, backend, recipe, role, gemm, x, expected.shape, expected.dtype)
    assert np.array_equal(found, expected), (recipe, role, gemm, found[found != expected], expected[found != expected])
    wide = spread(scale_inv, block, x.shape)
    expected_codes = encode(x * (f32(1) / wide), E4M3)
    assert np.array_equal(codes, expected_codes), (recipe, role, gemm)
    assert same(values, bf16(decode(codes, E4M3) * wide)), (recipe, role, gemm)


def hadamard_of(library, backend):
    """The 16 x 16 matrix that wgrad's operands are turned by: columns are the images of unit vectors, found one at a time.

    A unit vector's image is +-1/4 everywhere, which any recipe's cast holds exactly."""
    columns = []
    for i in range(16):
        unit = np.zeros((16, 1), f32)
        unit[i] = 1
        codes, _, scale_inv, values = quaver_cast(library, backend, "nvfp4", INPUT, WGRAD, unit, (1, 1), np.uint8)
        columns.append(values[:, 0] * scale_inv)
    return np.round(np.array(columns).T * 4) / 4


def butterflies(x, signs):
    x = x.copy()
    for first in range(0, x.shape[0] - 15, 16):
        v = x[first:first + 16] * signs[:, None]
        for apart in (1, 2, 4, 8):
            v = v.reshape(-1, 2, apart, v.shape[1])
            v = np.stack([v[:, 0] + v[:, 1], v[:, 0] - v[:, 1]], 1).reshape(16, -1)
        x[first:first + 16] = v * f32(0.25)
    return x


def check_nvfp4(library, backend, x, role, gemm, signs):
    turned = butterflies(x, signs) if gemm == WGRAD else x
    block = block_of("nvfp4", role, gemm)
    tensor = f32(1)
    if amax(turned) > 0 and np.isfinite(amax(turned)):
        tensor = min(f32(448 * 6) / amax(turned), FLT_MAX)
    amaxes = over_blocks(turned, block, amax)
    expected = encode(amaxes / f32(6) * tensor, E4M3)
    nan = over_blocks(turned, block, lambda b: np.isnan(b).any()).astype(bool)
    expected = np.where(nan, 0x7F, expected).astype(np.uint8)
    codes, found, scale_inv, values = quaver_cast(library, backend, "nvfp4", role, gemm, x, expected.shape, np.uint8)
    assert scale_inv == f32(1) / tensor
    assert np.array_equal(found, expected), (role, gemm)
    wide = spread(decode(expected, E4M3), block, x.shape)
    with np.errstate(all="ignore"):
        y = turned * np.where(wide == 0, f32(0), tensor / wide)
    if role == GRADIENT:
        grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        size = np.minimum(np.abs(np.nan_to_num(y.astype(np.float64), nan=0)), 6)
        chosen = np.abs(decode(codes, E2M1))
        below = grid[np.searchsorted(grid, size, side="right") - 1]
        above = grid[np.searchsorted(grid, size, side="left")]
        assert np.all((chosen == below) | (chosen == above)), (role, gemm)
        between = (size > below) & (size < above)
        if between.sum() >= 100:  # in some matrices a huge number makes zeros of all others
            expectation = ((size - below) / np.where(above > below, above - below, 1))[between].mean()
            assert abs((chosen == above)[between].mean() - expectation) < 5 / np.sqrt(between.sum()), "rounding is biased"
    else:
        assert np.array_equal(codes, encode(y, E2M1)), (role, gemm)
    assert same(values, bf16(decode(codes, E2M1) * wide)), (role, gemm)


def numbers(shape, seed, special):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * np.exp2(rng.integers(-12, 12, shape))).astype(f32)
    if special:
        kinds = rng.integers(0, 400, shape)
        for kind, value in enumerate([np.nan, np.inf, -np.inf, 1e-41, 3.3e38, -0.0, 0.0]):
            x[kinds == kind] = value
        x[:, 5 * 32:6 * 32] = 0
    return x


def main():
    library = ctypes.CDLL(sys.argv[1])
    cases = 0
    with np.errstate(all="ignore"):
        for backend in ("reference", "cpu"):
            matrix = hadamard_of(library, backend)
            np.testing.assert_array_equal(matrix @ matrix.T, np.eye(16))
            signs = (np.sign(matrix[0])).astype(f32)  # the first row of a Hadamard matrix is all ones, but for the signs
            for shape, seed, special in (((17, 223), 1, True), ((130, 300), 2, True), ((48, 65), 3, False), ((1, 1), 4, False)):
                x = numbers(shape, seed, special)
                for role, gemm in OPERANDS:
                    check_one_scale(library, backend, x, role, gemm)
                    for recipe in ("block", "mxfp8"):
                        check_blocks(library, backend, recipe, x, role, gemm)
                    plain = np.where(np.isinf(x), f32(1), x) if gemm == WGRAD else x
                    if not (role == GRADIENT and x.size == 1):
                        check_nvfp4(library, backend, plain, role, gemm, signs)
                    cases += 4
    print(f"{cases} casts as numpy and ml_dtypes compute them")


if __name__ == "__main__":
    main()
