#!/usr/bin/env python3
"""The tables of docs/results/cpu.md from a folder that bench/cpu_table.sh has filled.

usage: cpu_table.py FOLDER. What is missing in the folder is left out of the tables.
"""
import json
import re
import statistics
import sys
from pathlib import Path

PRODUCT = re.compile(r" *(\d+) +(\d+) +(\d+)  (\w+) +fp8 *(\d+) +(\d+)% +bf16 *(\d+) +(\d+)%(?: +oneDNN *(\d+) +(\d+)%"
                     r"  fp8/oneDNN ([\d.]+)  bf16/oneDNN ([\d.]+))?")


def read(folder, name):
    path = folder / name
    return path.read_text() if path.exists() else None


def read_json(folder, name):
    text = read(folder, name)
    return json.loads(text.splitlines()[-1]) if text else None


def products_of(text):
    """Rows of bench_gemm: sizes, kind, shares of the peak, ratios to oneDNN (None without it)."""
    rows = []
    for match in map(PRODUCT.match, (text or "").splitlines()):
        if match:
            m, k, n = (int(match[i]) for i in (1, 2, 3))
            ratios = [float(match[i]) if match[i] else None for i in (11, 12)]
            rows.append({"size": (m, k, n), "kind": match[4], "fp8": int(match[6]), "bf16": int(match[8]),
                         "fp8_ratio": ratios[0], "bf16_ratio": ratios[1], "gflop": 2e-9 * m * k * n})
    return rows


def table(title, heads, rows):
    if not rows:
        return
    print(f"\n## {title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def verdict(met):
    return "yes" if met else "no"


def product_rows(rows, small):
    big = [row for row in rows if row["gflop"] >= 1]
    found = []
    for kind, target in (("fprop", 90), ("dgrad", 90), ("wgrad", 85)):
        shares = [row["fp8"] for row in big if row["kind"] == kind]
        if shares:
            median = statistics.median(shares)
            found.append((f"FP8 {kind}, {len(shares)} shapes of 1 GFLOP and more, share of the peak", f">= {target}%",
                          f"{median:.0f}% median, {min(shares)} to {max(shares)}%", verdict(min(shares) >= target)))
    for name, key in (("FP8", "fp8_ratio"), ("BF16", "bf16_ratio")):
        ratios = [row[key] for row in rows if row[key]]
        if ratios:
            median = statistics.median(ratios)
            goal = ("median >= 1.00, least >= 0.95", median >= 1 and min(ratios) >= 0.95) if name == "FP8" else (
                ">= 1.00", median >= 1)
            found.append((f"{name} products over oneDNN BF16, {len(ratios)} products", goal[0],
                          f"{median:.2f} median, least {min(ratios):.2f}", verdict(goal[1])))
    ratios = [row["fp8_ratio"] for row in small if row["fp8_ratio"]]
    if ratios:
        found.append((f"small shapes, FP8 over oneDNN BF16, {len(ratios)} products", "least >= 0.80",
                      f"{statistics.median(ratios):.2f} median, least {min(ratios):.2f}", verdict(min(ratios) >= 0.8)))
    return found


def step_rows(folder):
    found = []
    for name, title, target in (("step-124m-1", "`gated-124m`, 1 x 1024", 68), ("step-124m-4", "`gated-124m`, 4 x 1024", 72),
                                ("step-320", "`small-320`", 60), ("step-nano", "`nano`", 50)):
        step = read_json(folder, name)
        if step:
            mfu = 100 * step["fp8"]["mfu"]
            found.append((f"{title}, FP8 step, MFU", f">= {target}%",
                          f"{mfu:.1f}% ({step['fp8']['tokens_per_s']:.0f} tokens/s, peak "
                          f"{step['bf16_peak_flops'] * 1e-9:.0f} GFLOP/s)", verdict(mfu >= target)))
            found.append((f"{title}, FP8 over BF16", ">= 1.00", f"{step['fp8_over_bf16']:.3f}",
                          verdict(step["fp8_over_bf16"] >= 1)))
    return found


def generation_rows(generation):
    if not generation:
        return []
    share = 100 * generation["fp8"]["bandwidth_share"]
    return [("`gated-124m`, one token at a time, share of the read bandwidth for the FP8 weights", ">= 80%",
             f"{share:.0f}% ({generation['fp8']['tokens_per_s']:.0f} tokens/s, {generation['read_bytes_per_s'] * 1e-9:.1f} GB/s)",
             verdict(share >= 80)),
            ("FP8 over BF16", ">= 1.70", f"{generation['fp8_over_bf16']:.2f}", verdict(generation["fp8_over_bf16"] >= 1.7))]


def memory_rows(memory):
    if not memory:
        return []
    ratio = memory["fp8"]["activations"] / memory["bf16"]["activations"]
    return [("`gated-124m`, 4 x 1024, FP8 activations over BF16", "<= 0.75", f"{ratio:.2f}", verdict(ratio <= 0.75))]


def kernel_target(kernel):
    if kernel["operation"].startswith("cast bf16"):
        return 0.9
    if kernel["operation"].startswith("attention"):
        return 0.5
    if kernel["operation"].startswith("gemm"):
        return 0.85 if "wgrad" in kernel["operation"] else 0.9
    return 0.8


def print_kernels(kernels):
    for title, of_memory in (("Products and attention (`quaver bench kernels`)", False),
                             ("Operations bound by memory (`quaver bench kernels`)", True)):
        rows = []
        for kernel in kernels or []:
            if (kernel["flops"] == 0) != of_memory:
                continue
            rate, ceiling = ("gb_per_s", "copy_gb_per_s") if of_memory else ("gflop_per_s", "peak_gflop_per_s")
            target = kernel_target(kernel)
            rows.append((kernel["operation"], kernel["shape"], f"{kernel['ms']:.3f}", f"{kernel['bytes'] * 1e-6:.1f}",
                         f"{kernel[rate]:.1f}", f"{kernel[ceiling]:.1f}", f"{kernel['ratio']:.2f}", f"{target:.2f}",
                         verdict(kernel["ratio"] >= target)))
        unit = "GB/s" if of_memory else "GFLOP/s"
        table(title, ("operation", "shape", "ms", "MB", unit, "copy" if of_memory else "peak", "share", "target", "met"), rows)


def print_profile(title, profile):
    if not profile:
        return
    rows = [(operation["operation"], operation["calls"], f"{operation['ms']:.2f}",
             f"{100 * operation['ms'] / profile['step_ms']:.1f}%", f"{operation['bytes'] * 1e-6:.1f}",
             f"{100 * operation['ceiling_share']:.0f}%")
            for operation in profile["operations"] if operation["ms"] >= 1e-3 * profile["step_ms"]]
    inside = sum(operation["ms"] for operation in profile["operations"])
    rows.append(("outside operations", "", f"{profile['step_ms'] - inside:.2f}",
                 f"{100 * (1 - inside / profile['step_ms']):.1f}%", "", ""))
    table(f"{title}, {profile['micro_batch']} x {profile['context']}: {profile['step_ms']:.1f} ms, MFU "
          f"{100 * profile['mfu']:.1f}%", ("operation", "calls", "ms", "of the step", "MB", "of its ceiling"), rows)


def print_memory(memory):
    if memory:
        table("Memory of a step, `gated-124m`, 4 x 1024, MB", ("part", "FP8", "BF16", "FP8/BF16"),
              [(part, f"{size * 1e-6:.1f}", f"{memory['bf16'][part] * 1e-6:.1f}", f"{size / memory['bf16'][part]:.2f}")
               for part, size in memory["fp8"].items()])


def print_products(title, rows):
    heads = ["tokens, in, out", "product", "FP8, of the peak", "BF16, of the peak"]
    compared = any(row["fp8_ratio"] for row in rows)
    table(title, heads + (["FP8/oneDNN", "BF16/oneDNN"] if compared else []),
          [[" x ".join(map(str, row["size"])), row["kind"], f"{row['fp8']}%", f"{row['bf16']}%"]
           + ([row["fp8_ratio"], row["bf16_ratio"]] if compared else []) for row in rows])


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    print(" · ".join((read(folder, "machine") or "").split("\n")).rstrip(" ·"))
    products, small = products_of(read(folder, "gemm")), products_of(read(folder, "gemm-small"))
    memory = read_json(folder, "memory")
    table("Targets", ("what", "target", "measured", "met"),
          product_rows(products, small) + step_rows(folder) + generation_rows(read_json(folder, "generate"))
          + memory_rows(memory))
    print_kernels(read_json(folder, "kernels"))
    for name, title in (("profile-124m", "`gated-124m`"), ("profile-320", "`small-320`"), ("profile-nano", "`nano`")):
        print_profile(title, read_json(folder, name))
    print_memory(memory)
    print_products("Products of the models and squares", products)
    print_products("Few tokens, small widths, odd sizes", small)


if __name__ == "__main__":
    main()
