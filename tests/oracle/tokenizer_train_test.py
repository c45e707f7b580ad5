"""`quaver tokenize train` against the trainer of Python's tokenizers: the same merges, and a file that Python reads and encodes equally with.

usage: tokenizer_train_test.py QUAVER ORACLE_TOKENIZE SOURCE_FOLDER
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizer_corpus import HARD, expect_equal, quaver_tokens, random_texts, training_texts
from tokenizer_test import CL100K, QWEN, byte_level, split
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

VOCAB = 4000
FAMILIES = {
    "gpt2": (None, byte_level(use_regex=True)),
    "llama3": (None, pre_tokenizers.Sequence([split(CL100K), byte_level()])),
    "qwen": (normalizers.NFC(), pre_tokenizers.Sequence([split(QWEN), byte_level()])),
}


def train_in_python(normalizer, pre_tokenizer, texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, min_frequency=2, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    # Quaver leaves special tokens in the text out; Python's trainer takes them for text.
    tokenizer.train_from_iterator([part for text in texts for part in text.split("<|endoftext|>")], trainer)
    return tokenizer


def check(program, oracle, folder, family, texts):
    path = Path(folder) / f"{family}.json"
    command = [program, "tokenize", "train", "--vocab", str(VOCAB), "--pattern", family, "--output", str(path), f"{folder}/text"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    expected = json.loads(train_in_python(*FAMILIES[family], texts).to_str())["model"]
    assert model["vocab"] == expected["vocab"], f"{family}: the vocabularies differ"
    assert model["merges"] == expected["merges"], f"{family}: the merges differ"
    tokenizer = Tokenizer.from_file(str(path))
    hard = HARD + random_texts(100)
    expect_equal(family, hard, quaver_tokens(oracle, path, hard), [e.ids for e in tokenizer.encode_batch(hard, add_special_tokens=False)])
    for text in texts[:20]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text or family == "qwen"
    print(f"{family}: {len(model['merges'])} merges equal")


def main():
    program, oracle, source = sys.argv[1:]
    texts = training_texts(source)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").mkdir()
        for i, text in enumerate(texts):
            (Path(folder) / "text" / f"{i:04}").write_text(text, encoding="utf-8", newline="")
        for family in FAMILIES:
            check(program, oracle, folder, family, texts)


if __name__ == "__main__":
    main()
