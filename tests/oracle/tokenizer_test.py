"""Quaver's tokenizers against Python's tokenizers, tiktoken and sentencepiece, whose models are trained here on the project's own files.

Both must give equal tokens for every text of a hard corpus, for random mixtures of it, and (two families) for every code point. Texts that are not UTF-8
are not comparable (Python's packages take strings): they must decode to their own bytes.

usage: tokenizer_test.py ORACLE_TOKENIZE SOURCE_FOLDER
"""

import base64
import json
import sys
import tempfile
from pathlib import Path

import sentencepiece
import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizer_corpus import HARD, every_code_point, expect_equal, quaver_tokens, random_texts, training_texts

CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = CL100K.replace("{1,3}", "")
DEEPSEEK = [r"[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", r"[一-龥ࠀ-一가-퟿]+"]
INVALID = [b"\xff", b"a\xffb", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"ok \xe4\xb8 cut", bytes(range(256)) * 3, b"\xf0\x9f\x98", b"\xc0\xaf" * 9]


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def byte_level(use_regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def families():
    yield "gpt2", None, byte_level(use_regex=True), False
    yield "llama3", None, pre_tokenizers.Sequence([split(CL100K), byte_level()]), True
    yield "qwen", normalizers.NFC(), pre_tokenizers.Sequence([split(QWEN), byte_level()]), False
    yield "removed", None, pre_tokenizers.Sequence([split(CL100K, "removed", invert=True), byte_level()]), False
    steps = [split(pattern) for pattern in DEEPSEEK]
    yield "deepseek", None, pre_tokenizers.Sequence([*steps, pre_tokenizers.Digits(individual_digits=True), byte_level()]), False


def train(normalizer, pre_tokenizer, ignore_merges, texts):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<|long|>", "<|longer|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("<cafe\u0301>", normalized=True)])
    return tokenizer


def old_spelling(path):
    """The same file with merges as strings, as older versions wrote them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    old = path.with_suffix(".old.json")
    old.write_text(json.dumps(content), encoding="utf-8")
    return old


def check_tokenizers(program, folder, train_texts, some_texts):
    for name, normalizer, pre_tokenizer, ignore_merges in families():
        tokenizer = train(normalizer, pre_tokenizer, ignore_merges, train_texts)
        path = Path(folder) / f"{name}.json"
        tokenizer.save(str(path))
        texts = some_texts + every_code_point() if name in ("gpt2", "qwen") else some_texts
        expected = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        found = quaver_tokens(program, path, texts)
        expect_equal(name, texts, found, expected)
        if not normalizer:
            # The document token decodes to nothing.
            assert all(same for text, (_, same) in zip(texts, found) if "<|endoftext|>" not in text), f"{name}: a text is not decoded to itself"
        expect_equal(name, HARD, quaver_tokens(program, old_spelling(path), HARD), expected[: len(HARD)])
        assert all(same for _, same in quaver_tokens(program, path, INVALID)), f"{name}: bytes that are not UTF-8 are not decoded to themselves"
        print(f"{name}: {len(texts)} texts, {sum(map(len, expected))} tokens equal")


def check_tiktoken(program, folder, train_texts, texts):
    tokenizer = train(None, pre_tokenizers.Sequence([split(CL100K), byte_level()]), False, train_texts)
    characters = {c: b for b, c in enumerate_alphabet()}
    vocab = [t for t, _ in sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1]) if t != "<|endoftext|>"]
    ranks = {bytes(characters[c] for c in token): rank for rank, token in enumerate(vocab)}
    path = Path(folder) / "small.tiktoken"
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    special = {"<|endoftext|>": len(ranks)}
    oracle = tiktoken.Encoding("small", pat_str=CL100K, mergeable_ranks=ranks, special_tokens=special)
    expect_equal("tiktoken", texts, quaver_tokens(program, path, texts), [oracle.encode(t, allowed_special="all") for t in texts])
    print(f"tiktoken: {len(texts)} texts equal")


def enumerate_alphabet():
    """(byte, character) of the byte-level alphabet, as GPT-2's encoder.py makes it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [b for b in range(256) if b not in printable]
    return [(b, chr(b)) for b in printable] + [(b, chr(256 + i)) for i, b in enumerate(others)]


def check_sentencepiece(program, folder, train_texts, texts):
    lines = [line[:1000] for text in train_texts for line in text.split("\n") if line]
    for kind in ("unigram", "bpe"):
        prefix = Path(folder) / kind
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=str(prefix), vocab_size=1000, model_type=kind, byte_fallback=True, minloglevel=2)
        path = prefix.with_suffix(".model")
        oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
        expect_equal(kind, texts, quaver_tokens(program, path, texts), [oracle.encode(t) for t in texts])
    print(f"sentencepiece: {len(texts)} texts equal")


def main():
    program, source = sys.argv[1:]
    train_texts = training_texts(source)
    texts = HARD + random_texts(300) + train_texts
    with tempfile.TemporaryDirectory() as folder:
        check_tokenizers(program, folder, train_texts, texts)
        # tiktoken's own engine overflows its stack on very long runs of spaces; those are compared above.
        check_tiktoken(program, folder, train_texts, [t for t in texts if " " * 900 not in t])
        check_sentencepiece(program, folder, train_texts, HARD + random_texts(100))


if __name__ == "__main__":
    main()
