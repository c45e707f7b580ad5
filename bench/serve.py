#!/usr/bin/env python3
"""Measures `quaver serve`: completions from 1, 4 and 16 clients at once, then what a server that is full answers.

    bench/serve.py RUN [--quaver build/release/quaver] [--threads 0] [--tokens 64] [--requests 32] [--rounds 3]

Starts the server on a free port and prints, in Markdown, tokens a second, the time to the first token and to the last, as
medians and 95th percentiles over all requests; rates are medians of the rounds, in which the numbers of clients alternate. Only
Python's standard library is needed.
"""
import argparse
import contextlib
import http.client
import json
import math
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

PROMPT = "#include <stddef.h>\n\n/* Returns the number of bytes"
CLIENTS = (1, 4, 16)


@contextlib.contextmanager
def server(arguments, *options):
    """The port of a `quaver serve` that lives as long as the block."""
    command = [arguments.quaver, "serve", arguments.run, f"threads={arguments.threads}", "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        lines = []
        while "}" not in (lines[-1] if lines else ""):
            line = process.stdout.readline()
            if not line:
                sys.exit(f"{' '.join(command)}: ended with exit code {process.wait()}")
            lines.append(line)
        yield json.loads("".join(lines))["port"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def complete(port, tokens, seed):
    """One streamed completion: status, seconds to the first and the last token, number of tokens."""
    begin, first, count = time.perf_counter(), math.nan, 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 1, "seed": seed, "stream": True,
            "stream_options": {"include_usage": True}}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        response.read()
        return {"status": response.status, "seconds": time.perf_counter() - begin}
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[len(b"data: "):])
        if event["choices"] and math.isnan(first):
            first = time.perf_counter() - begin
        if event.get("usage"):
            count = event["usage"]["completion_tokens"]
    return {"status": 200, "first": first, "seconds": time.perf_counter() - begin, "tokens": count}


def at_once(port, clients, requests, tokens, seed):
    """Answers of `requests` completions sent by as many clients, and the seconds all of them took."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda i: complete(port, tokens, seed + i), range(requests)))
    return answers, time.perf_counter() - begin


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def milliseconds(answers, key):
    values = [1e3 * answer[key] for answer in answers]
    return f"{statistics.median(values):.0f} / {percentile(values, 0.95):.0f}"


def throughput(arguments):
    rates, answers = {n: [] for n in CLIENTS}, {n: [] for n in CLIENTS}
    with server(arguments) as port:
        complete(port, arguments.tokens, 0)  # the first one also warms caches
        for round_number in range(arguments.rounds):
            for clients in CLIENTS:
                found, seconds = at_once(port, clients, arguments.requests, arguments.tokens, 1000 * round_number)
                refused = [answer["status"] for answer in found if answer["status"] != 200]
                if refused:
                    sys.exit(f"{clients} clients: expected only status 200, found {refused}")
                rates[clients].append(sum(answer["tokens"] for answer in found) / seconds)
                answers[clients] += found
    print("| clients | tokens/s (rounds) | x one client | first token, ms, median / p95 | whole answer, ms, median / p95 | tokens an answer |")
    print("|---|---|---|---|---|---|")
    for clients in CLIENTS:
        rate, found = statistics.median(rates[clients]), answers[clients]
        rounds = ", ".join(f"{value:.0f}" for value in rates[clients])
        print(f"| {clients} | {rate:.0f} ({rounds}) | {rate / statistics.median(rates[1]):.2f} | {milliseconds(found, 'first')} | "
              f"{milliseconds(found, 'seconds')} | {statistics.mean(answer['tokens'] for answer in found):.1f} |")


def overload(arguments):
    places, queue, clients = 2, 4, 16
    with server(arguments, "--max-batch", str(places), "--queue", str(queue)) as port:
        answers, _ = at_once(port, clients, clients, arguments.tokens, 1)
        after, health = complete(port, arguments.tokens, 1), get(port, "/health")
    by_status = {status: [a for a in answers if a["status"] == status] for status in sorted({a["status"] for a in answers})}
    print(f"\n{clients} clients at once, `--max-batch {places} --queue {queue}`:\n")
    print("| status | answers | ms, median / p95 |\n|---|---|---|")
    for status, found in by_status.items():
        print(f"| {status} | {len(found)} | {milliseconds(found, 'seconds')} |")
    print(f"\nThe next request: {after['status']}; `/health` then: `{json.dumps(health)}`")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--quaver", default="build/release/quaver")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    throughput(arguments)
    overload(arguments)


if __name__ == "__main__":
    main()
