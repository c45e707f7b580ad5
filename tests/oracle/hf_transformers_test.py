"""Exported folders in stock Hugging Face transformers, and its folders in Quaver: exported ones load without remote code, without a missing or unexpected weight, as
the expected class, and compute Quaver's logits; the tokenizer's ids are Quaver's bytes.

Exits 77 (skipped) where transformers, torch or ml_dtypes is not installed. Bound: both sides compute in FP32 in different orders of
summation, and transformers computes rotary frequencies in FP32 too; see hf_export_test.py.

usage: hf_transformers_test.py QUAVER RUN_LOGITS_PROGRAM CONFIG
"""

import sys
import tempfile
from pathlib import Path

try:
    import ml_dtypes  # noqa: F401
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

import numpy as np

from hf_runs import TOKENS, VARIANTS, Programs

RELATIVE_BOUND = 1e-4
TEXT = "Hello, ä\n\0 \U0001f600<|document|>x"


def check_model(folder, class_name, expected, what):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert type(model).__name__ == class_name, what
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], f"{what}: {problem} {info[problem]}"
    with torch.no_grad():
        found = model(torch.tensor([TOKENS])).logits[0].numpy()
    error = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
    assert error < RELATIVE_BOUND, f"{what}: logits differ by {error:.2e} of the largest"
    return error


def stock_models():
    """Small random models of each class, as transformers itself makes them."""
    sizes = {
        "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 20000.0}
    yield transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, rope_parameters=rope, mlp_bias=True))
    yield transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes, rope_parameters=rope, tie_word_embeddings=True))
    gated = {"layer_types": ["full_attention"] * 2, "attention_bias": True}
    partial = rope | {"partial_rotary_factor": 0.5}
    yield transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig(**sizes, **gated, rope_parameters=partial))


def check_import(programs, model, name):
    """What transformers saves, Quaver imports; biases and gains are disturbed, so that none is 0 or 1."""
    folder = programs.folder / name
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    model.save_pretrained(folder)
    found = programs.logits(programs.import_(folder, name + "_run"))
    error = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
    assert error < RELATIVE_BOUND, f"{type(model).__name__}: logits differ by {error:.2e} of the largest"
    return error


def check_tokenizer(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    before, after = TEXT.split("<|document|>")
    ids = [256, *before.encode(), 256, *after.encode()]
    assert tokenizer(TEXT)["input_ids"] == ids, tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids[1:]) == TEXT
    assert tokenizer.bos_token_id == 256 and tokenizer.eos_token_id == 256


def main():
    quaver, run_logits, config = sys.argv[1:]
    errors = []
    with tempfile.TemporaryDirectory() as name:
        programs = Programs(quaver, run_logits, config, Path(name))
        for i, (class_name, overrides, _) in enumerate(VARIANTS):
            run = programs.make_run(f"run{i}", overrides)
            folder = programs.export(run, f"export{i}", *(["--shard-size", "20000"] if i % 2 else []))
            errors.append(check_model(folder, class_name, programs.logits(run), f"{class_name} {' '.join(overrides)}"))
            check_tokenizer(folder)
        imports = [check_import(programs, model, f"stock{i}") for i, model in enumerate(stock_models())]
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}: {len(errors)} exported and "
        f"{len(imports)} imported models agree; the worst relative error is {max(errors + imports):.1e}, the bound {RELATIVE_BOUND:.0e}"
    )


if __name__ == "__main__":
    main()
