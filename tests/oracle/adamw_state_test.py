"""AdamW with state in FP32, BF16 and FP8 on both host backends, against the rule in numpy and ml_dtypes, byte for byte.

The random numbers are Philox once more, and neighbours are found in the sorted numbers of a format, not by bits.

usage: adamw_state_test.py LIBRARY
"""

import ctypes
import sys

import ml_dtypes
import numpy as np

f32, BF16, E4M3 = np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
BLOCK = 128
BETA1, BETA2, EPSILON, LR, DECAY = f32(0.9), f32(0.95), f32(1e-8), f32(3e-3), f32(0.1)
KINDS = {"f32": 0, "bf16": 1, "fp8": 2}
NUMBERS = {"f32": f32, "bf16": BF16, "fp8": np.uint8}
CASES = [("f32", "f32"), ("f32", "bf16"), ("f32", "fp8"), ("bf16", "f32"), ("bf16", "bf16"), ("bf16", "fp8")]
SEED, NOISE_STREAM = 0x9_1234_5678, 0xFEED_0BAD_CAFE_0123
# All numbers of a format that are not negative, ascending: their codes are their places.
SORTED = {
    BF16: np.arange(0x7F81, dtype=np.uint16).view(BF16).astype(np.float64),
    E4M3: np.arange(0x7F, dtype=np.uint8).view(E4M3).astype(np.float64),
}


def philox(counters, key):
    """Philox4x32-10 of [n, 4] counters (Salmon et al., SC 2011)."""
    c = [counters[:, i].astype(np.uint64) for i in range(4)]
    k = [key & 0xFFFFFFFF, key >> 32]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), p0 & low]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, 1)


def at(counters, stream):
    """[n, 4]: counters, then the stream."""
    counters = np.asarray(counters, np.uint64)
    words = [counters & np.uint64(0xFFFFFFFF), counters >> np.uint64(32)]
    return np.stack(words + [np.full_like(counters, stream & 0xFFFFFFFF), np.full_like(counters, stream >> 32)], 1)


def uniforms(number, array, count):
    words = philox(at([array], number), NOISE_STREAM)[0]
    stream = int(words[1]) << 32 | int(words[0])
    return (philox(at(np.arange(-(-count // 4)), stream), SEED).reshape(-1)[:count] >> np.uint64(8)) * 2.0**-24


def place(magnitude, numbers, uniform):
    """The place of the lower neighbour, or of the upper one if the remainder exceeds the uniform number."""
    lower = np.minimum(np.searchsorted(numbers, magnitude, "right") - 1, numbers.size - 2)
    remainder = (magnitude - numbers[lower]) / (numbers[lower + 1] - numbers[lower])
    return lower + (remainder > uniform)


def to_bf16(x, uniform):
    codes = place(np.abs(x).astype(np.float64), SORTED[BF16][:-1], uniform)
    return (codes.astype(np.uint16) | np.signbit(x).astype(np.uint16) << 15).view(BF16)


def in_blocks(x):
    """[blocks, BLOCK], zeros at the end."""
    blocks = -(-x.size // BLOCK)
    return np.concatenate([x, np.zeros(blocks * BLOCK - x.size, x.dtype)]).reshape(blocks, BLOCK)


def decode(codes, scales):
    return (in_blocks(codes).view(E4M3).astype(f32) * scales[:, None]).reshape(-1)[: codes.size]


def encode(x, least, uniform):
    blocks = in_blocks(x)
    amax = np.maximum(np.abs(blocks).max(1), f32(2.0**-100))
    scaled = np.clip(blocks * (f32(448) / amax)[:, None], f32(-448), f32(448)).reshape(-1)[: x.size]
    codes = place(np.abs(scaled).astype(np.float64), SORTED[E4M3], uniform).astype(np.uint8)
    codes |= np.signbit(scaled).astype(np.uint8) << 7
    return np.where((x > 0) & (codes < least), np.uint8(least), codes), amax / f32(448)


class Oracle:
    def __init__(self, value_kind, kind, value):
        self.value_kind, self.kind, self.value = value_kind, kind, value.astype(NUMBERS[value_kind])
        self.m, self.v = np.zeros(value.size, NUMBERS[kind]), np.zeros(value.size, NUMBERS[kind])
        self.m_scales = np.zeros(-(-value.size // BLOCK), f32)
        self.v_scales = self.m_scales.copy()

    def moments(self):
        if self.kind != "fp8":
            return self.m.astype(f32), self.v.astype(f32)
        root = decode(self.v, self.v_scales)
        return decode(self.m, self.m_scales), root * root

    def step(self, g, number):
        m, v = self.moments()
        m = BETA1 * m + (f32(1) - BETA1) * g
        v = BETA2 * v + (f32(1) - BETA2) * g * g
        first, second = (f32(1 - float(beta) ** number) for beta in (BETA1, BETA2))
        old = self.value.astype(f32)
        new = old - LR * (m / first / (np.sqrt(v / second) + EPSILON) + DECAY * old)
        of_value, of_m, of_v = (uniforms(number, array, g.size) for array in range(3))
        self.value = to_bf16(new, of_value) if self.value_kind == "bf16" else new
        if self.kind == "fp8":
            self.m, self.m_scales = encode(m, 0, of_m)
            self.v, self.v_scales = encode(np.sqrt(v), 1, of_v)
        elif self.kind == "bf16":
            self.m, self.v = to_bf16(m, of_m), to_bf16(v, of_v)
        else:
            self.m, self.v = m, v

    def state(self):
        scales = [self.m_scales, self.v_scales] if self.kind == "fp8" else []
        return [self.value, self.m, self.v, *scales]


def quaver_step(library, backend, oracle, g, number):
    """What the library makes of the oracle's state."""
    arrays = [array.copy() for array in (oracle.value, oracle.m, oracle.v, oracle.m_scales, oracle.v_scales)]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (g, *arrays)]
    library.quaver_adamw(backend.encode(), KINDS[oracle.value_kind], KINDS[oracle.kind], ctypes.c_int64(g.size),
                         ctypes.c_int64(number), ctypes.c_float(LR), ctypes.c_float(DECAY), ctypes.c_uint64(SEED),
                         ctypes.c_uint64(NOISE_STREAM), *pointers)
    return arrays


def gradients(random, count):
    """Sizes over 30 binades; blocks of zeros, of denormals, and of one number among zeros."""
    g = (random.standard_normal(count) * np.exp2(random.integers(-30, 1, count))).astype(f32)
    blocks = [g[i : i + BLOCK] for i in range(0, count, BLOCK)]
    for number, block in enumerate(blocks):
        if number % 6 == 3:
            block[:] = 0
        if number % 6 == 4:
            block *= f32(2.0**-130)
        if number % 6 == 5:
            block[1:] = 0
    return g


def main():
    library = ctypes.CDLL(sys.argv[1])
    # The test vector of the paper's library (Random123) for ten rounds of zeros.
    assert [int(word) for word in philox(np.zeros((1, 4)), 0)[0]] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    random = np.random.default_rng(4)
    compared = 0
    for value_kind, kind in CASES:
        for count in (1, 127, 128, 129, 1223, 40001):
            oracle = Oracle(value_kind, kind, random.standard_normal(count).astype(f32))
            for number in range(1, 7):
                g = gradients(random, count) if number != 4 else np.zeros(count, f32)
                found = {backend: quaver_step(library, backend, oracle, g, number) for backend in ("reference", "cpu")}
                oracle.step(g, number)
                for backend, arrays in found.items():
                    for name, array, expected in zip(("value", "m", "v", "m_scales", "v_scales"), arrays, oracle.state()):
                        where = (value_kind, kind, count, number, backend, name)
                        differing = np.flatnonzero(array.view(np.uint8) != expected.view(np.uint8))
                        assert differing.size == 0, (where, differing[:5])
                        compared += array.size
    print(f"{compared} numbers of AdamW's state equal those of numpy")


if __name__ == "__main__":
    main()
