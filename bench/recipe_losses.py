"""Trains one small model under BF16 and every recipe over several seeds, and reports the losses.

usage: recipe_losses.py --quaver PROGRAM --config RUN.toml --data PATH --out FOLDER [--seeds 1 2] [--jobs 2] [--set key=value ...]

All variants of a seed see the same data in the same order. Finished runs in --out are kept and unfinished ones go on. The text is made of --data by
distinct_text.py; the final loss is `quaver eval` on --eval-batches batches of documents that no run trains on. Writes table.md to --out.
"""

import statistics
from pathlib import Path

from distinct_text import write_distinct
from training_runs import Run, in_parallel, percent_and_error, study_parser, train

VARIANTS = {"bf16": {"precision": "bf16"}} | {
    recipe: {"precision": "fp8", "fp8.recipe": recipe} for recipe in ("delayed", "current", "block", "mxfp8", "nvfp4")
}
FINAL_STEPS = 50


def arguments():
    parser = study_parser(__doc__.splitlines()[0], seeds=[1, 2], jobs=2)
    parser.add_argument("--eval-batches", type=int, default=200)
    return parser.parse_args()


def share(run, key):
    """Of all elements cast, in percent."""
    return 100 * sum(run.curve(key)[1]) / max(1, sum(run.curve("fp8_cast")[1]))


def row(variant, runs, losses, baseline):
    mean = statistics.mean(losses)
    differences = [100 * (loss / reference - 1) for loss, reference in zip(losses, baseline)]
    against = "" if variant == "bf16" else percent_and_error(differences)
    training = statistics.mean(statistics.mean(run.curve("loss")[1][-FINAL_STEPS:]) for run in runs)
    casts = "" if variant == "bf16" else "".join(
        f" {statistics.mean(share(run, key) for run in runs):.4f}% |" for key in ("fp8_saturated", "fp8_underflowed"))
    cells = " | ".join(f"{loss:.4f}" for loss in losses)
    return f"| {variant} | {cells} | {mean:.4f} | {against} | {training:.4f} |{casts or ' | |'}"


def main():
    options = arguments()
    text = write_distinct(options.data, options.out / "text")
    overrides = {"data.val_fraction": 0.1, "data.path": text.resolve(), **dict(item.split("=", 1) for item in options.overrides)}
    runs = {variant: [Run(options.out / f"{variant}-seed{seed}", {**settings, "train.seed": seed}) for seed in options.seeds]
            for variant, settings in VARIANTS.items()}

    def evaluation(run):
        return run.report(options.quaver.resolve(), "eval", "eval", run.folder, f"train.eval_batches={options.eval_batches}")

    def finish(run):
        train(options.quaver.resolve(), options.config, overrides, run)
        evaluation(run)

    in_parallel(options.jobs, finish, [run for of_seed in zip(*runs.values()) for run in of_seed])
    losses = {variant: [evaluation(run)["val_loss"] for run in of_variant] for variant, of_variant in runs.items()}
    seeds = " | ".join(f"seed {seed}" for seed in options.seeds)
    lines = [f"| recipe | {seeds} | mean, nats | against bf16 | training loss, last {FINAL_STEPS} steps | saturated | rounded to zero |",
             "|" + "---|" * (len(options.seeds) + 6)]
    lines += [row(variant, runs[variant], losses[variant], losses["bf16"]) for variant in VARIANTS]
    (options.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
