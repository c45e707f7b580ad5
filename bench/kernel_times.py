#!/usr/bin/env python3
"""Where a step's time on the GPU goes, from the file that bench/kernel_times.cpp's library wrote.

usage: kernel_times.py TIMES.tsv [--mark PART_OF_A_NAME] [--steps N] [--top N] [--gaps N]

A step is what lies between two kernels named --mark, of which there is one a micro-batch (by default the first of embedding's
backward); the last --steps steps are averaged. Prints a table by kernel: launches a step, milliseconds a step, share of the step; then the time between kernels,
and with --gaps the N pairs of neighbours between which most of it passes, with the median and the longest gap of each.
"""
import argparse
import re
from collections import defaultdict


def short(name):
    """A kernel's name without its arguments, and with template arguments cut to what tells kernels apart."""
    name = re.sub(r"\(anonymous namespace\)::|quaver::|cuda::|void ", "", name)
    name = re.sub(r"\((?:int|unsigned int|bool|unsigned long)\)", "", name)
    return name.split("(")[0][:110]


def steps_of(records, mark):
    """Lists of records, each from one kernel named mark to the next."""
    marks = [index for index, record in enumerate(records) if mark in record[2]]
    return [records[first:last] for first, last in zip(marks, marks[1:])]


def print_gaps(steps, top):
    gaps = defaultdict(list)
    for step in steps:
        for (start, duration, name), (following, _, next_name) in zip(step, step[1:]):
            gaps[short(name), short(next_name)].append(following - start - duration)
    print("\n| kernel | the next | times | ms between | median, us | longest, us |\n|---|---|---|---|---|---|")
    for pair in sorted(gaps, key=lambda pair: sum(gaps[pair]), reverse=True)[:top]:
        waits = sorted(gaps[pair])
        print(f"| `{pair[0]}` | `{pair[1]}` | {len(waits) / len(steps):.0f} | {sum(waits) * 1e-6 / len(steps):.3f} "
              f"| {waits[len(waits) // 2] * 1e-3:.2f} | {waits[-1] * 1e-3:.1f} |")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("times")
    arguments.add_argument("--mark", default="count_rows")
    arguments.add_argument("--steps", type=int, default=1)
    arguments.add_argument("--top", type=int, default=60)
    arguments.add_argument("--gaps", type=int, default=0)
    options = arguments.parse_args()
    with open(options.times) as file:
        records = [(int(start), int(duration), name) for start, duration, name in (line.rstrip("\n").split("\t", 2) for line in file)]
    steps = steps_of(records, options.mark)[-options.steps :]
    if not steps:
        raise SystemExit(f"{options.times}: fewer than two kernels whose name contains {options.mark}")
    launches, busy = defaultdict(int), defaultdict(int)
    span = sum(step[-1][0] + step[-1][1] - step[0][0] for step in steps)
    for step in steps:
        for _, duration, name in step:
            launches[short(name)] += 1
            busy[short(name)] += duration
    ms = 1e-6 / len(steps)
    print(f"{len(steps)} steps, each {span * ms:.3f} ms from first to last kernel\n")
    print("| kernel | launches | ms | share |\n|---|---|---|---|")
    for name in sorted(busy, key=busy.get, reverse=True)[: options.top]:
        print(f"| `{name}` | {launches[name] / len(steps):.0f} | {busy[name] * ms:.3f} | {busy[name] / span:.1%} |")
    total = sum(busy.values())
    print(f"| all kernels | {sum(launches.values()) / len(steps):.0f} | {total * ms:.3f} | {total / span:.1%} |")
    print(f"| between kernels | | {(span - total) * ms:.3f} | {1 - total / span:.1%} |")
    if options.gaps:
        print_gaps(steps, options.gaps)


if __name__ == "__main__":
    main()
