#!/usr/bin/env python3
"""Runs EleutherAI's lm-evaluation-harness against `quaver serve`, and compares its numbers with those of `quaver eval`.

    python3 -m venv .venv-lm && .venv-lm/bin/pip install 'lm_eval[api]==0.4.13' transformers
    .venv-lm/bin/python bench/lm_eval_check.py RUN TEXT_FOLDER [--quaver build/release/quaver] [--questions 200]

The harness is no dependency of Quaver, and the script says so where it is missing. Nothing is downloaded: the questions are made
of the files below TEXT_FOLDER, 100 bytes of a file and four continuations of 20 to 60 bytes, of which one is its own; the texts
for the perplexity are beginnings of other files. The tokenizer that the harness needs is that of `quaver export`.
Exit code 1: the two disagree.
"""
import argparse
import importlib.util
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile

from serve import server

CHOICES_TASK = """
task: quaver_choices
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {folder}/choices.jsonl}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""

TEXTS_TASK = """
task: quaver_texts
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {folder}/texts.jsonl}}}}
validation_split: validation
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""


def text_files(folder):
    """The ASCII files below `folder` of at least 1000 bytes, in random order."""
    texts = []
    for path in sorted(pathlib.Path(folder).rglob("*.h")):
        content = path.read_bytes()[:100_000]
        if len(content) >= 1000 and content.isascii() and b"\r" not in content and b"<|" not in content:
            texts.append(content.decode())
    random.Random(1).shuffle(texts)
    return texts


def excerpt(text, random_source, size):
    """Ends without a blank: the harness would move that to the continuation."""
    begin = random_source.randrange(len(text) - 2 * size)
    while text[begin + size - 1].isspace() and begin + 2 * size < len(text):
        begin += 1
    return text[begin:begin + size], text[begin + size:begin + size + random_source.randrange(20, 61)]


def write_questions(folder, texts, count):
    source = random.Random(2)
    with open(folder / "choices.jsonl", "w") as file:
        for text in texts[:count]:
            context, right = excerpt(text, source, 100)
            choices = [right] + [excerpt(source.choice(texts), source, 100)[1] for _ in range(3)]
            source.shuffle(choices)
            if context[-1].isspace() or len(set(choices)) < 4:
                continue
            file.write(json.dumps({"context": context, "choices": choices, "label": choices.index(right)}) + "\n")
    with open(folder / "texts.jsonl", "w") as file:
        for text in texts[count:count + 20]:
            file.write(json.dumps({"text": text[:600]}) + "\n")
    (folder / "choices.yaml").write_text(CHOICES_TASK.format(folder=folder))
    (folder / "texts.yaml").write_text(TEXTS_TASK.format(folder=folder))


def harness(folder, port, name, task, tokenized):
    """The task's results. With `tokenized` the harness sends token ids, otherwise text."""
    arguments = (f"model={name},base_url=http://127.0.0.1:{port}/v1/completions,tokenizer={folder}/hf,tokenizer_backend=huggingface,"
                 f"tokenized_requests={tokenized},num_concurrent=4,max_retries=1,max_length=256")
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments, "--tasks", task,
               "--include_path", str(folder), "--output_path", str(folder / task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-4000:]}")
    results = next((folder / task).rglob("results_*.json"))
    return json.loads(results.read_text())["results"][task]


def quaver(program, *arguments):
    return json.loads(subprocess.run([program, *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("texts")
    parser.add_argument("--quaver", default="build/release/quaver")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--questions", type=int, default=200)
    arguments = parser.parse_args()
    if importlib.util.find_spec("lm_eval") is None:
        sys.exit("lm_eval is not installed for this Python. It is optional: see the beginning of this file")

    folder = pathlib.Path(tempfile.mkdtemp(prefix="quaver-lm-eval-"))
    write_questions(folder, text_files(arguments.texts), arguments.questions)
    subprocess.run([arguments.quaver, "export", arguments.run, "--output", str(folder / "hf")], check=True, stdout=subprocess.DEVNULL)
    name = pathlib.Path(arguments.run).name
    with server(arguments) as port:
        theirs = harness(folder, port, name, "quaver_choices", tokenized=False)
        texts = harness(folder, port, name, "quaver_texts", tokenized=True)
    threads = f"threads={arguments.threads}"
    ours = quaver(arguments.quaver, "eval", arguments.run, threads, "--choices", str(folder / "choices.jsonl"))
    validation = quaver(arguments.quaver, "eval", arguments.run, threads)

    print("| | lm_eval through quaver serve | quaver eval |\n|---|---|---|")
    agree = True
    for metric in ("acc", "acc_norm"):
        agree = agree and math.isclose(theirs[f"{metric},none"], ours[metric], abs_tol=1e-9)
        print(f"| {metric}, {ours['questions']} questions | {theirs[f'{metric},none']:.4f} | {ours[metric]:.4f} |")
    print(f"| bits per byte: 20 texts of 600 bytes; the validation set | {texts['bits_per_byte,none']:.4f} | {validation['val_bpb']:.4f} |")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
