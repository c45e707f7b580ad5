"""Makes a text for comparisons out of a folder: every distinct document once, and no more than its first bytes.

usage: distinct_text.py FOLDER OUTPUT [--document-bytes 32768]

A folder of system headers holds some files dozens of times and a few generated ones of megabytes. A validation split drawn from
it is then a handful of documents, and its loss says little about two models that differ slightly. Writes the documents under
their own relative paths; of equal ones the first in order of names. Symbolic links are not followed.
"""

import argparse
import hashlib
from pathlib import Path

DOCUMENT_BYTES = 32768


def write_distinct(source, output, document_bytes=DOCUMENT_BYTES):
    """Writes the text unless `output` is there already; returns `output`."""
    if output.exists():
        return output
    unfinished = output.with_name(output.name + ".unfinished")
    seen = set()
    for path in sorted(source.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        # Compared as far as they are kept: documents that differ later would be equal ones in the text.
        with open(path, "rb") as file:
            text = file.read(document_bytes)
        digest = hashlib.sha256(text).digest()
        if not text or digest in seen:
            continue
        seen.add(digest)
        target = unfinished / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text)
    unfinished.rename(output)
    return output


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--document-bytes", type=int, default=DOCUMENT_BYTES)
    arguments = parser.parse_args()
    write_distinct(arguments.folder, arguments.output, arguments.document_bytes)
