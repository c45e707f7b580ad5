"""Hard texts for tokenizers, and running Quaver's on them."""

import random
import struct
import subprocess
from pathlib import Path

HARD = [
    "",
    " ",
    "\n",
    "Hello world",
    "I'll, you're, WE'VE, can't, IT'S, i'M, he'd 'S 'tis rock'n'roll ''s ſ 'ſ",
    "tabs\tand\t\ttabs   three spaces    four\n\n\nthree lines \n  \n indented\r\ncarriage\r\r\n\r",
    " " * 1000 + "x" + " " * 999 + "\n" + " " * 333,
    "\t" * 70 + "int main() {\n\t\treturn 0;\n}\n",
    "1 12 123 1234 12345678901234567890 3.14159 0x1F 1e-9 １２３ ٠١٢٣ ½ Ⅷ ² 𝟗𝟘",
    "emoji 😀😃 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ☎️ #️⃣",
    "combining é é ñ ñ Å Å Å ạ̈̂ ậ 각 각 क्षि กำ",
    "NFC: \u2126 \u212b \u0344 \u0958 \ufb1f \u1e9b\u0323 \u0f73 \u2adc \U0001d15e \ufb4f ﬁ",
    "control \x00\x01\x02\x07\x08\x0b\x0c\x1b\x1f\x7f\x80\x85\x9f end",
    "spaces \u00a0 \u1680 \u180e \u2000\u200a \u2028 \u2029 \u202f \u205f \u3000 \ufeff \u200b\u200d end",
    "русский текст, 中文文本、日本語のテキスト。 한국어 العربية עברית हिन्दी ไทย Ελληνικά ქართული",
    "mixed中文and英文123混合русскийabc",
    "ǅ ǈ ʰ ª º ß ẞ İ ı Ǆ ﷺ ᏣᎳᎩ ꙮ 𝒳 𐐀𐐨 𞤀",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> <|endoftext|><|endoftext|>c<|endoftext|",
    "<|end<|endoftext|>oftext|> <|longer|><|longer <|long|>er|> plain <tool_call> x </tool_call>",
    "é<café> café <café>",
    "https://example.org/path?query=a+b&c=%20#frag user@host.tld C:\\dir\\file.txt",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c[i]; /* comment */ } // end\n#define X(y) ((y)+1)\n",
    "a" * 5000,
    "ab" * 3000 + "!" * 2000 + "?!" * 500 + "9" * 1001,
    "word" + "\u0301" * 400 + " " + "👍" * 300,
    "trailing spaces   ",
    "   leading",
    "\n\n  \n\t \n x",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "\ud7ff\ue000\ufffd\uffff\U0001ffff\U0010ffff\U00010000",
]

FRAGMENTS = HARD[4].split(" ") + [
    " ", "  ", "\n", "\r\n", "\t", "'", "'s", "'LL", "the", "The", " quick", "brown", "42", "7", "é", "e\u0301", "中", "日本", "😀", "\u200d",
    "\u00a0", "\u3000", "<|endoftext|>", "<|long|>", ".", "...", "-", "_", "/", "\\", "{", "}", "()", "\x00", "\x85", "ß", "İ", "ـ", "क्", "\u2028",
    "½", "Ⅷ", "ª", "ʰ", "\ufeff",
]


def random_texts(count, seed=7):
    rng = random.Random(seed)
    texts = ["".join(rng.choices(FRAGMENTS, k=rng.randrange(1, 60))) for _ in range(count)]
    for _ in range(count):
        points = [rng.randrange(0x20, 0x3000) if rng.random() < 0.7 else rng.randrange(0, 0x110000) for _ in range(40)]
        texts.append("".join(chr(p) for p in points if not 0xD800 <= p < 0xE000))
    return texts


def every_code_point():
    """Each character between letters and behind a space, in texts of 4096 of them."""
    points = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    return ["".join(f"a{chr(p)}b {chr(p)} " for p in points[i : i + 4096]) for i in range(0, len(points), 4096)]


def training_texts(root):
    """The project's own files: English and C++."""
    files = sorted(p for pattern in ("docs/**/*.md", "src/**/*.cpp", "src/**/*.h", "*.md") for p in Path(root).glob(pattern))
    return [path.read_text(encoding="utf-8") for path in files] + HARD[8:17]


def quaver_tokens(program, tokenizer, texts):
    """Per text its tokens, and whether they decode to it."""
    data = b"".join(struct.pack("<I", len(t)) + t for t in (t if isinstance(t, bytes) else t.encode() for t in texts))
    result = subprocess.run([program, str(tokenizer)], input=data, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    lines = result.stdout.decode().split("\n")
    return [([int(token) for token in lines[2 * i].split()], lines[2 * i + 1].endswith("true")) for i in range(len(texts))]


def expect_equal(what, texts, found, expected):
    for text, (tokens, _), wanted in zip(texts, found, expected, strict=True):
        if tokens == wanted:
            continue
        at = next((i for i, (a, b) in enumerate(zip(tokens, wanted)) if a != b), min(len(tokens), len(wanted)))
        raise AssertionError(f"{what}: {text[:200]!r}: token {at}: {tokens[at - 3 : at + 5]}, expected {wanted[at - 3 : at + 5]}")
