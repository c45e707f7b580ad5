"""What becomes of AdamW's v when it is stored in fewer bits and rounded to nearest, or stochastically. Needs numpy.

usage: moment_rounding.py [--seed 1]

Gradients are normal numbers; after a while those of every second element become ten times smaller. v is kept in FP64 and beside it as BF16, and as E4M3 square roots
with a scale for 128 elements (docs/numerics.md). Prints, for elements whose gradients stayed and for those that became quiet, sqrt(stored v / exact v) at the end: mean ± standard deviation.
The exact v of both has itself a spread, printed in the first row of a beta2 as that of sqrt(v) over its mean.
"""

import argparse

import numpy as np

ELEMENTS, BLOCK = 64 * 128, 128


def round_to(x, spacing, random):
    """Multiples of `spacing`: to nearest without `random`, else stochastically."""
    steps = x / spacing
    return spacing * (np.rint(steps) if random is None else np.floor(steps + random.random(x.size)))


def store_bf16(v, random):
    return round_to(v, np.exp2(np.floor(np.log2(v)) - 7), random)


def store_e4m3_roots(v, random):
    """Square roots, a positive one never zero."""
    root = np.sqrt(v)
    scale = np.repeat(root.reshape(-1, BLOCK).max(1) / 448, BLOCK)
    scaled = root / scale
    spacing = np.exp2(np.maximum(np.floor(np.log2(scaled)), -6) - 3)
    return (scale * np.clip(round_to(scaled, spacing, random), 2.0**-9, 448)) ** 2


FORMATS = {"BF16": store_bf16, "E4M3 roots": store_e4m3_roots}


def simulate(beta2, seed):
    random, rounding = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    variants = {(name, how): (store, source) for name, store in FORMATS.items() for how, source in (("nearest", None), ("stochastic", rounding))}
    phase = round(10 / (1 - beta2))
    exact = random.standard_normal(ELEMENTS) ** 2
    stored = {key: store(exact, source) for key, (store, source) in variants.items()}
    for step in range(2 * phase):
        size = np.where(np.arange(ELEMENTS) % 2 == 1, 0.1 if step >= phase else 1.0, 1.0)
        change = (1 - beta2) * (size * random.standard_normal(ELEMENTS)) ** 2
        exact = beta2 * exact + change
        for key, (store, source) in variants.items():
            stored[key] = store(beta2 * stored[key] + change, source)
    return exact, stored


def spread(x):
    return f"{x.mean():.3f} ± {x.std():.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    print("| beta2 | v stored as | rounded | gradients stayed | gradients became 10 times smaller |\n|---|---|---|---|---|")
    for beta2 in (0.95, 0.99, 0.999):
        exact, stored = simulate(beta2, seed)
        halves = [np.sqrt(exact[first::2]) for first in (0, 1)]
        print(f"| {beta2} | exact | | " + " | ".join(spread(half / half.mean()) for half in halves) + " |")
        for (name, how), v in stored.items():
            ratio = np.sqrt(v / exact)
            print(f"| {beta2} | {name} | {how} | {spread(ratio[0::2])} | {spread(ratio[1::2])} |")


if __name__ == "__main__":
    main()
