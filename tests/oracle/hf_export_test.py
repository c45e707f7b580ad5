"""Export to and import from Hugging Face folders, against the architectures written from their definitions (hf_oracle.py).

For every variant: the logits that the exported folder defines equal Quaver's in FP32; importing the folder and exporting that
again gives the same bytes; and where the folder can say everything that the run says, the import has the run's parameters bit for
bit. Then the layout of the gate paper's code, shards, and BF16.

Bound: Quaver computes in FP32, whose rounding error is 6e-8 an operation; a logit here is the end of some 40 dependent operations
over sums of up to 64 terms, measured against the largest logit. 1e-4 leaves room for that (1e-6 is seen) and is far below what
a wrong layout or formula gives.

usage: hf_export_test.py QUAVER RUN_LOGITS_PROGRAM CONFIG
"""

import json
import struct
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

import hf_oracle
from hf_runs import GATED, QWEN3, TOKENS, VARIANTS, Programs

RELATIVE_BOUND = 1e-4


def relative_error(found, expected):
    assert found.shape == expected.shape and np.all(np.isfinite(found))
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


def check_logits(programs, run, folder, what):
    config, arrays = hf_oracle.read_folder(folder)
    error = relative_error(programs.logits(run), hf_oracle.Model(config, arrays).logits(TOKENS))
    assert error < RELATIVE_BOUND, f"{what}: logits differ by {error:.2e} of the largest"
    return error


def assert_equal_bits(found, expected, what):
    assert found.keys() == expected.keys(), f"{what}: {found.keys() ^ expected.keys()}"
    for name, array in expected.items():
        assert found[name].shape == array.shape and found[name].tobytes() == array.tobytes(), f"{what}: {name}"


def check_variant(programs, i, class_name, overrides, exact):
    what = f"{class_name} {' '.join(overrides)}"
    run = programs.make_run(f"run{i}", overrides)
    folder = programs.export(run, f"export{i}")
    config, arrays = hf_oracle.read_folder(folder)
    assert config["architectures"] == [class_name], what
    error = check_logits(programs, run, folder, what)

    options = [o for o in overrides if o.startswith(("model.qkv=", "model.gate_up="))]
    options += ["--gate", "headwise"] if "model.gate=headwise" in overrides else []
    again = programs.import_(folder, f"import{i}", *options)
    second = hf_oracle.read_folder(programs.export(again, f"again{i}"))
    if exact:
        expected = hf_oracle.read_arrays(run / "model.safetensors")
        assert_equal_bits(hf_oracle.read_arrays(again / "model.safetensors"), expected, what)
        assert second[0] == config, what
    assert_equal_bits(second[1], arrays, what + ", exported again")
    return error


def write_safetensors(path, arrays):
    header, data = {}, b""
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.astype(np.float32).tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def check_paper_layout(programs, gate, qk_norm, bias):
    """A random model in the layout of the gate paper's code, imported."""
    what = f"per-kv-group {gate}, use_qk_norm={qk_norm}, qkv_bias={bias}"
    base = programs.make_run(f"paper_base_{gate}_{qk_norm}_{bias}", QWEN3)
    config, arrays = hf_oracle.read_folder(programs.export(base, base.name + "_export"))
    config |= {f"{gate}_attn_output_gate": True, "use_qk_norm": qk_norm, "qkv_bias": bias}
    h, g, d, width = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"))
    rng = np.random.default_rng(1)
    rows = {"q": h * d + (h if gate == "headwise" else h * d), "k": g * d, "v": g * d, "o": width}
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}.self_attn."
        arrays[name + "q_proj.weight"] = rng.normal(0, 0.5, (rows["q"], width)).astype(np.float32)
        if bias:
            for which, count in rows.items():
                arrays[f"{name}{which}_proj.bias"] = rng.normal(0, 0.5, count).astype(np.float32)
        if not qk_norm:
            del arrays[name + "q_norm.weight"], arrays[name + "k_norm.weight"]
    folder = programs.folder / (base.name + "_paper")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", arrays)
    run = programs.import_(folder, base.name + "_import", "--gate-layout", "per-kv-group")
    return check_logits(programs, run, folder, what)


def check_shards_and_bf16(programs):
    run = programs.make_run("shards", GATED)
    whole = hf_oracle.read_folder(programs.export(run, "whole"))[1]
    folder = programs.export(run, "cut", "--shard-size", "20000")
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and files == sorted(set(index["weight_map"].values())), files
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    for name, file in index["weight_map"].items():
        assert name in hf_oracle.read_arrays(folder / file)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    assert_equal_bits(hf_oracle.read_folder(folder)[1], whole, "shards")
    imported = programs.import_(folder, "cut_import")
    expected = hf_oracle.read_arrays(run / "model.safetensors")
    assert_equal_bits(hf_oracle.read_arrays(imported / "model.safetensors"), expected, "import of shards")

    rounded = hf_oracle.read_folder(programs.export(run, "rounded", "--dtype", "bfloat16"))
    assert rounded[0]["dtype"] == "bfloat16"
    expected = {name: array.astype(ml_dtypes.bfloat16) for name, array in whole.items()}
    assert_equal_bits(rounded[1], expected, "BF16")
    bf16_import = programs.import_(programs.folder / "rounded", "rounded_import")
    check_logits(programs, bf16_import, programs.folder / "rounded", "import of BF16")


def main():
    quaver, run_logits, config = sys.argv[1:]
    errors = []
    with tempfile.TemporaryDirectory() as name:
        programs = Programs(quaver, run_logits, config, Path(name))
        for i, (class_name, overrides, exact) in enumerate(VARIANTS):
            errors.append(check_variant(programs, i, class_name, overrides, exact))
        for gate, qk_norm, bias in [("headwise", True, False), ("elementwise", True, True), ("headwise", False, True)]:
            errors.append(check_paper_layout(programs, gate, qk_norm, bias))
        check_shards_and_bf16(programs)
    print(f"{len(errors)} models agree; the worst relative error is {max(errors):.1e}, the bound {RELATIVE_BOUND:.0e}")


if __name__ == "__main__":
    main()
