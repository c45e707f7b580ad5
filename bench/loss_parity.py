"""Trains one configuration in several precisions and gate forms over several seeds, and reports the losses.

usage: loss_parity.py --quaver PROGRAM --config RUN.toml --data PATH --out FOLDER [--seeds 1 2 3] [--jobs 2] [key=value ...]

Each run is `quaver train` with the overrides of its variant; finished runs in --out are kept, so the script can be stopped and
started again. --jobs runs go side by side on one thread each: results do not depend on the number of threads. Writes table.md, parity.svg (precisions) and gate.svg (gate forms) to --out. Needs matplotlib for the figures
(bench/requirements.txt). All variants of one seed see the same data in the same order.
"""

import argparse
import json
import statistics
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PRECISIONS = {name: {"precision": name, "model.gate": "elementwise"} for name in ("fp32", "bf16", "fp8")}
GATES = {f"fp8 {gate}": {"precision": "fp8", "model.gate": gate} for gate in ("elementwise", "headwise", "none")}


def run_folder(out, settings, seed):
    return out / f"{settings['precision']}-{settings['model.gate']}-seed{seed}"


def train(arguments, settings, seed):
    """Runs one training unless its folder already holds a finished one."""
    folder = run_folder(arguments.out, settings, seed)
    if (folder / "model.safetensors").exists():
        return
    overrides = {**settings, "train.seed": seed, "data.path": arguments.data, "run.dir": folder, "threads": 1}
    command = [arguments.quaver.resolve(), "train", arguments.config, *(f"{key}={value}" for key, value in overrides.items())]
    print(" ".join(map(str, command)), flush=True)
    with open(arguments.out / f"{folder.name}.log", "w") as log:
        subprocess.run([*command, *arguments.overrides], check=True, stdout=log, stderr=log)


def distinct(variants):
    """The settings without repetition: two names may stand for one run."""
    return list({tuple(settings.items()): settings for settings in variants.values()}.values())


def curve(folder, key):
    """(steps, values) of one metric of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    points = [(row["step"], row[key]) for row in rows if key in row]
    return [step for step, _ in points], [value for _, value in points]


def final(arguments, settings, key):
    return [curve(run_folder(arguments.out, settings, seed), key)[1][-1] for seed in arguments.seeds]


def table(arguments, variants, baseline):
    """A Markdown table: final validation loss of every seed, the mean, and the difference from the baseline."""
    seeds = " | ".join(f"seed {seed}" for seed in arguments.seeds)
    lines = [f"| variant | {seeds} | mean, nats | bits per byte | against {baseline} |", "|---" * (len(arguments.seeds) + 4) + "|"]
    reference = statistics.mean(final(arguments, variants[baseline], "val_loss"))
    for name, settings in variants.items():
        losses = final(arguments, settings, "val_loss")
        mean, bpb = statistics.mean(losses), statistics.mean(final(arguments, settings, "val_bpb"))
        cells = " | ".join(f"{loss:.4f}" for loss in losses)
        lines.append(f"| {name} | {cells} | {mean:.4f} | {bpb:.4f} | {100 * (mean / reference - 1):+.2f}% |")
    return "\n".join(lines)


def smooth(values, width=25):
    return [statistics.mean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


def plot(arguments, variants, path, title):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "quaver"
    import matplotlib.pyplot as plt

    figure, (whole, end) = plt.subplots(1, 2, figsize=(11, 4.2))
    for colour, (name, settings) in enumerate(variants.items()):
        for number, seed in enumerate(arguments.seeds):
            folder = run_folder(arguments.out, settings, seed)
            label = name if number == 0 else None
            steps, losses = curve(folder, "loss")
            whole.plot(steps[::10], smooth(losses)[::10], color=f"C{colour}", linewidth=0.8, label=label)
            end.plot(*curve(folder, "val_loss"), color=f"C{colour}", linewidth=1, marker=".", label=label)
    whole.set(xlabel="step", ylabel="training loss, nats (mean of 25 steps)", title=title)
    end.set(xlabel="step", ylabel="validation loss, nats", title=f"{len(arguments.seeds)} seeds")
    for axes in (whole, end):
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("quaver", "config", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2)
    arguments, arguments.overrides = parser.parse_known_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    variants = {**PRECISIONS, **GATES}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = [(settings, seed) for settings in distinct(variants) for seed in arguments.seeds]
        for done in [pool.submit(train, arguments, *run) for run in runs]:
            done.result()
    tables = [table(arguments, PRECISIONS, "bf16"), table(arguments, GATES, "fp8 none")]
    (arguments.out / "table.md").write_text("\n\n".join(tables) + "\n")
    plot(arguments, PRECISIONS, arguments.out / "parity.svg", "elementwise gate, three precisions")
    plot(arguments, GATES, arguments.out / "gate.svg", "FP8, three gate forms")
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
