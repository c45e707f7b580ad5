"""Trains one configuration in several precisions and gate forms over several seeds, and reports the losses.

usage: loss_parity.py --quaver PROGRAM --config RUN.toml --data PATH --out FOLDER [--seeds 1 2 3] [--jobs 2]
                      [--precisions fp32 bf16 fp8] [--gates none headwise elementwise] [--eval-batches 600] [--set key=value ...]

Each run is `quaver train` with the overrides of its variant, one thread a run (results do not depend on the number of threads),
--jobs of them side by side. Finished runs in --out are kept and unfinished ones go on, so the script can be stopped and started
again; `--gates` without a value leaves the gates out. All variants of one seed see the same data in the same order. The final loss is `quaver eval` on --eval-batches batches,
spread over the validation text. The text is made of --data by distinct_text.py and stays in --out.
Writes table.md, parity.svg and gate.svg to --out; the figures need matplotlib (bench/requirements.txt).
"""

import statistics
from pathlib import Path

from distinct_text import write_distinct
from training_runs import Run, in_parallel, percent_and_error, pyplot, save_figure, smooth, study_parser, train

PRECISIONS = {name: {"precision": name, "model.gate": "elementwise"} for name in ("fp32", "bf16", "fp8")}
GATES = {gate: {"precision": "fp8", "model.gate": gate} for gate in ("none", "headwise", "elementwise")}
# One round after the other, each seed by seed: what there is when the script is stopped can be compared.
ROUNDS = [[PRECISIONS["bf16"], PRECISIONS["fp8"]], [PRECISIONS["fp32"]], [GATES["none"], GATES["headwise"]]]

# A rate that falls to nearly nothing: what is compared is where the runs arrive, not where the last steps threw them.
OVERRIDES = {"data.val_fraction": 0.1, "train.min_lr_ratio": 0.01}
FINAL_STEPS = 200


class Study:
    def __init__(self, arguments, overrides):
        self.arguments = arguments
        self.program = arguments.quaver.resolve()
        text = write_distinct(arguments.data, arguments.out / "text")
        self.overrides = {**OVERRIDES, **overrides, "data.path": text.resolve()}

    def run(self, settings, seed):
        name = f"{settings['precision']}-{settings['model.gate']}-seed{seed}"
        return Run(self.arguments.out / name, {**settings, "train.seed": seed})

    def runs(self, settings):
        return [self.run(settings, seed) for seed in self.arguments.seeds]

    def finish(self, run):
        train(self.program, self.arguments.config, self.overrides, run)
        self.evaluation(run)

    def evaluation(self, run):
        batches = f"train.eval_batches={self.arguments.eval_batches}"
        return run.report(self.program, "eval", "eval", run.folder, batches)

    def losses(self, settings):
        return [self.evaluation(run)["val_loss"] for run in self.runs(settings)]

    def table(self, variants, baseline):
        """Final validation loss of every seed, and the difference from the baseline of the same seed."""
        seeds = " | ".join(f"seed {seed}" for seed in self.arguments.seeds)
        lines = [
            f"| variant | {seeds} | mean, nats | bits per byte | against {baseline}, seed by seed | mean ± standard error "
            f"| training loss, last {FINAL_STEPS} steps |",
            "|---" * (len(self.arguments.seeds) + 6) + "|",
        ]
        reference = self.losses(variants[baseline])
        for name, settings in variants.items():
            losses = self.losses(settings)
            bits = statistics.mean(self.evaluation(run)["val_bpb"] for run in self.runs(settings))
            trained = statistics.mean(statistics.mean(run.curve("loss")[1][-FINAL_STEPS:]) for run in self.runs(settings))
            percent = [100 * (loss / other - 1) for loss, other in zip(losses, reference)]
            differences = "" if name == baseline else ", ".join(f"{value:+.2f}%" for value in percent)
            summary = "" if name == baseline else percent_and_error(percent)
            cells = " | ".join(f"{loss:.4f}" for loss in losses)
            lines.append(f"| {name} | {cells} | {statistics.mean(losses):.4f} | {bits:.4f} | {differences} | {summary} | {trained:.4f} |")
        return "\n".join(lines)

    def casts(self, settings):
        """Shares of all cast elements that saturated, and that were rounded to zero."""
        rows = [row for run in self.runs(settings) for row in run.metrics()]
        cast = sum(row["fp8_cast"] for row in rows)
        return [sum(row[key] for row in rows) / cast for key in ("fp8_saturated", "fp8_underflowed")]

    def plot(self, variants, path, title):
        figure, (whole, end) = pyplot().subplots(1, 2, figsize=(11, 4.2))
        for colour, (name, settings) in enumerate(variants.items()):
            for number, run in enumerate(self.runs(settings)):
                style = {"color": f"C{colour}", "label": name if number == 0 else None}
                steps, losses = run.curve("loss")
                whole.plot(steps[::10], smooth(losses)[::10], linewidth=0.8, **style)
                end.plot(*run.curve("val_loss"), linewidth=1, marker=".", **style)
        whole.set(xlabel="step", ylabel="training loss, nats (mean of 25 steps)", title=title)
        end.set(xlabel="step", ylabel="validation loss, nats", title=f"{len(self.arguments.seeds)} seeds")
        for axes in (whole, end):
            axes.set_yscale("log")
            axes.grid(alpha=0.3, which="both")
            axes.legend()
        save_figure(figure, path)


def parse_arguments():
    parser = study_parser(__doc__, seeds=[1, 2, 3], jobs=2)
    parser.add_argument("--precisions", choices=PRECISIONS, nargs="*", default=list(PRECISIONS))
    parser.add_argument("--gates", choices=GATES, nargs="*", default=list(GATES))
    parser.add_argument("--eval-batches", type=int, default=600)
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    study = Study(arguments, dict(item.split("=", 1) for item in arguments.overrides))
    parts = {
        "parity": ({name: PRECISIONS[name] for name in PRECISIONS if name in arguments.precisions}, "bf16"),
        "gate": ({name: GATES[name] for name in GATES if name in arguments.gates}, "none"),
    }
    parts = {name: (variants, baseline) for name, (variants, baseline) in parts.items() if baseline in variants}
    wanted = [settings for variants, _ in parts.values() for settings in variants.values()]
    rounds = [[settings for settings in candidates if settings in wanted] for candidates in ROUNDS]
    runs = [study.run(settings, seed) for chosen in rounds for seed in arguments.seeds for settings in chosen]
    in_parallel(arguments.jobs, study.finish, runs)
    tables = []
    for name, (variants, baseline) in parts.items():
        tables.append(study.table(variants, baseline))
        study.plot(variants, arguments.out / f"{name}.svg", ", ".join(variants))
    if PRECISIONS["fp8"] in wanted:
        saturated, underflowed = study.casts(PRECISIONS["fp8"])
        tables.append(f"FP8: {saturated:.5%} of the cast elements saturated, {underflowed:.3%} were rounded to zero")
    (arguments.out / "table.md").write_text("\n\n".join(tables) + "\n")
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
