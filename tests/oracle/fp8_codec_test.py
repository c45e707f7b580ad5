"""Every FP32 number and every byte through Quaver's scalar FP8 codec, against ml_dtypes.

ml_dtypes follows IEEE-like overflow: float8_e4m3fn turns overflow and infinities into NaN, float8_e5m2 into infinity. Quaver
saturates, and has one NaN byte. So the oracle's bytes are adjusted: a number that is not NaN but whose oracle byte is beyond
the largest finite one becomes that one with its sign; a NaN becomes 0x7F. Nothing else may differ.

usage: fp8_codec_test.py CODEC_LIBRARY
"""

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

FORMATS = {"e4m3": (0, ml_dtypes.float8_e4m3fn, 0x7E), "e5m2": (1, ml_dtypes.float8_e5m2, 0x7B)}
CHUNK = 1 << 22


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def check_decode(codec, name):
    flag, dtype, _ = FORMATS[name]
    codes = np.arange(256, dtype=np.uint8)
    found = np.empty(256, np.float32)
    codec.quaver_fp8_decode(flag, pointer(codes), ctypes.c_int64(256), pointer(found))
    np.testing.assert_array_equal(found, codes.view(dtype).astype(np.float32))
    finite = ~np.isnan(found)
    np.testing.assert_array_equal(np.signbit(found[finite]), codes[finite] >= 0x80)


def expected_bytes(values, name):
    _, dtype, largest = FORMATS[name]
    with np.errstate(all="ignore"):
        codes = values.astype(dtype).view(np.uint8)
    sign = (values.view(np.uint32) >> 24).astype(np.uint8) & 0x80
    codes = np.where((codes & 0x7F) > largest, sign | largest, codes)
    return np.where(np.isnan(values), 0x7F, codes)


def mismatches(codec, name, chunk):
    """The FP32 numbers of one chunk of bit patterns that Quaver encodes otherwise."""
    values = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK, dtype=np.uint64).astype(np.uint32).view(np.float32)
    found = np.empty(CHUNK, np.uint8)
    codec.quaver_fp8_encode(FORMATS[name][0], pointer(values), ctypes.c_int64(CHUNK), pointer(found))
    return values[found != expected_bytes(values, name)]


def main():
    codec = ctypes.CDLL(sys.argv[1])
    for name in FORMATS:
        check_decode(codec, name)
        chunks = range((1 << 32) // CHUNK)
        with ThreadPoolExecutor(2) as pool:
            wrong = np.concatenate(list(pool.map(lambda chunk: mismatches(codec, name, chunk), chunks)))
        assert wrong.size == 0, f"{name}: {wrong.size} of 2^32 numbers differ, first {wrong[:5]}"
        print(f"{name}: 256 bytes decoded and 2^32 numbers encoded as ml_dtypes does")


if __name__ == "__main__":
    main()
