"""safetensors files against the format's own Python package, both ways.

Files that Python writes, of every type that Quaver knows, pass through each of Quaver's readers and its writer, and Python must
read the same arrays. Then thousands of damaged files: whatever Python refuses, Quaver must refuse too.

usage: safetensors_test.py COPY_PROGRAM
"""

import ctypes
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors

SIZES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I32": 4, "I64": 8, "U8": 1}
# As serialize() names them.
PYTHON_NAMES = {"F32": "float32", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I32": "int32",
                "I64": "int64", "U8": "uint8"}
DAMAGED = 3000


def random_arrays(rng):
    arrays = {}
    for i in range(rng.randrange(8)):
        dtype = rng.choice(list(SIZES))
        shape = [rng.randrange(5) for _ in range(rng.randrange(4))]
        count = 1
        for extent in shape:
            count *= extent
        name = f"{rng.choice(['w', 'é', 'a.b', ' ', chr(0x1F600), chr(34)])}{i}"
        arrays[name] = (dtype, shape, rng.randbytes(count * SIZES[dtype]))
    return arrays


def serialize(arrays, metadata):
    """The bytes that the package writes. `arrays` keeps alive what the package sees by address."""
    entries = {}
    for name, (dtype, shape, data) in arrays.items():
        address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
        entries[name] = safetensors.TensorSpec(
            dtype=PYTHON_NAMES[dtype], shape=shape, data_ptr=address, data_len=len(data)
        )
    return bytes(safetensors.serialize(entries, metadata))


def deserialize(content):
    return {name: (a["dtype"], list(a["shape"]), bytes(a["data"])) for name, a in safetensors.deserialize(content)}


def check_both_ways(program, folder, rng):
    source, copy = folder / "in.safetensors", folder / "out.safetensors"
    for round_ in range(100):
        arrays, metadata = random_arrays(rng), rng.choice([None, {}, {"k": "v", "é": "\n"}])
        # Python (0.8.0) writes a broken header for no arrays and empty metadata.
        source.write_bytes(serialize(arrays, metadata if arrays or metadata else None))
        subprocess.run([program, rng.choice(["read", "map"]), source, copy], check=True)
        assert deserialize(copy.read_bytes()) == arrays, f"round {round_}: {arrays}"
        if arrays:
            with safetensors.safe_open(copy, framework="np") as file:
                assert (file.metadata() or {}) == (metadata or {})


def damage(content, rng):
    """One to three changes: bytes, a header field's digit, the length, a truncation, bytes added."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        kind = rng.randrange(5)
        if kind == 0 and data:
            data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 1:
            digits = [i for i, byte in enumerate(data) if i >= 8 and 0x30 <= byte <= 0x39]
            if digits:
                data[rng.choice(digits)] = rng.choice(b"0123456789-.e")
        elif kind == 2 and len(data) >= 8:
            data[:8] = struct.pack("<Q", max(0, struct.unpack("<Q", data[:8])[0] + rng.choice([-8, -1, 1, 8, 1 << 40])) % (1 << 64))
        elif kind == 3:
            del data[rng.randrange(len(data) + 1) :]
        else:
            data += rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


def python_accepts(content):
    try:
        safetensors.deserialize(content)
        return True
    except safetensors.SafetensorError:
        return False


def check_refusals(program, folder, rng):
    contents = [damage(serialize(random_arrays(rng), None), rng) for _ in range(DAMAGED)]
    paths = [folder / f"{i}" for i in range(DAMAGED)]
    for path, content in zip(paths, contents):
        path.write_bytes(content)
    verdicts = []
    for i in range(0, DAMAGED, 500):
        run = subprocess.run([program, "check", *paths[i : i + 500]], check=True, capture_output=True, text=True)
        verdicts += run.stdout.split()
    refused = 0
    for content, verdict in zip(contents, verdicts, strict=True):
        if not python_accepts(content):
            refused += 1
            assert verdict == "refused", f"Python refuses, Quaver accepts: {content!r}"
    assert refused > DAMAGED / 3, refused
    return refused, verdicts.count("refused")


def main():
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        check_both_ways(sys.argv[1], Path(name), rng)
        python, quaver = check_refusals(sys.argv[1], Path(name), rng)
    print(f"100 files both ways; of {DAMAGED} damaged files Python refuses {python}, Quaver these and {quaver - python} more")


if __name__ == "__main__":
    main()
