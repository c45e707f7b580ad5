"""Does the attention gate allow a higher learning rate, and does FP8 profit? Trains a grid and reports it.

usage: gate_study.py --quaver PROGRAM --config configs/study.toml --data PATH --out FOLDER [--gates none headwise elementwise]
                     [--recipes bf16 delayed current mxfp8 bf16-perturbed] [--rates 2e-3 4e-3 ...] [--seeds 1 2 3]
                     [--jobs 2] [--report-only] [--set key=value ...]

Every run is `quaver train` with one gate, recipe ("bf16": no FP8; else fp8.recipe), learning rate and seed, on one thread; --jobs
of them side by side. Runs of one seed see the same data in the same order, and begin with the same weights where the shapes agree.
Finished runs in --out are kept and unfinished ones go on, so that any subset can be run in any order: the report covers what is
finished of the grid that was asked for. A recipe that the program does not know is refused before anything is
trained. "bf16-perturbed" is BF16 with AdamW's beta2 = 0.950001 instead of 0.95: it differs from BF16 as runs do that nothing
distinguishes, and so says how large a difference must be to mean something.

Writes table.md, rates.svg (loss by rate) and inside.svg (activations, first-token attention, gates by rate) to --out; the figures
need matplotlib (bench/requirements.txt). The text is made of --data by distinct_text.py and stays in --out.
"""

import itertools
import shutil
import statistics
import subprocess
from pathlib import Path

from distinct_text import write_distinct
from training_runs import USAGE, Run, in_parallel, percent_and_error, pyplot, save_figure, study_parser, train

GATES = ("none", "headwise", "elementwise")
RECIPES = ("bf16", "delayed", "current", "mxfp8", "bf16-perturbed")
RATES = ("2e-3", "4e-3", "8e-3", "1.6e-2", "3.2e-2")

# A rate is stable when every seed stays finite and ends within this factor of the best loss of its gate and recipe. Clipping
# and normalisation leave few runs that overflow: those that fail end on a plateau.
STABLE = 1.10
# A spike: the mean loss of a few steps this much (nats) above the lowest such mean before it. One until it has come back.
SPIKE, SPIKE_STEPS = 0.3, 8
PROBE_BATCHES = 20


def recipe_keys(recipe):
    if recipe == "bf16-perturbed":
        return {"precision": "bf16", "train.beta2": "0.950001"}
    return {"precision": "bf16"} if recipe == "bf16" else {"precision": "fp8", "fp8.recipe": recipe}


def count_spikes(losses, warmup):
    means = [statistics.mean(losses[i : i + SPIKE_STEPS]) for i in range(warmup, len(losses) - SPIKE_STEPS + 1)]
    lowest, inside, spikes = float("inf"), False, 0
    for mean in means:
        lowest = min(lowest, mean)
        high = mean > lowest + SPIKE
        spikes += high and not inside
        inside = high or (inside and mean > lowest + SPIKE / 2)
    return spikes


class Study:
    def __init__(self, arguments):
        self.arguments = arguments
        self.program = arguments.quaver.resolve()
        overrides = dict(item.split("=", 1) for item in arguments.overrides)
        text = write_distinct(arguments.data, arguments.out / "text")
        self.overrides = {**overrides, "data.path": text.resolve()}

    def run(self, gate, recipe, rate, seed):
        settings = {"model.gate": gate, **recipe_keys(recipe), "train.lr": rate, "train.seed": seed}
        return Run(self.arguments.out / f"{gate}-{recipe}-{rate}-seed{seed}", settings)

    def grid(self):
        """By seed and rate first: what there is when the script is stopped compares gates and recipes."""
        a = self.arguments
        return [
            self.run(gate, recipe, rate, seed)
            for seed, rate, recipe, gate in itertools.product(a.seeds, a.rates, a.recipes, a.gates)
        ]

    def check_recipes(self):
        """Settings are checked before data: a program that knows them misses the data, exit code 3."""
        for recipe in self.arguments.recipes:
            keys = {**recipe_keys(recipe), "data.path": self.arguments.out / "missing", "run.dir": self.arguments.out / "missing"}
            command = [self.program, "train", self.arguments.config, *(f"{key}={value}" for key, value in keys.items())]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            if done.returncode == USAGE:
                raise SystemExit(f"--recipes {recipe}: this program refuses it: {done.stderr.strip().splitlines()[-1]}")

    def finish(self, run):
        train(self.program, self.arguments.config, self.overrides, run)
        if not run.diverged:
            self.probe(run)
            shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # the model itself stays

    def probe(self, run):
        return run.report(self.program, "probe", "probe", run.folder, f"train.eval_batches={PROBE_BATCHES}")


class Variant:
    """The finished runs of one gate and recipe."""

    def __init__(self, study, gate, recipe):
        self.study, self.gate, self.recipe = study, gate, recipe
        self.runs = {}
        for rate in study.arguments.rates:
            runs = [study.run(gate, recipe, rate, seed) for seed in study.arguments.seeds]
            self.runs[rate] = {seed: run for seed, run in zip(study.arguments.seeds, runs) if run.result is not None}

    def losses(self, rate):
        """By seed; infinite where a run has diverged."""
        return {seed: float("inf") if run.diverged else run.result["val_loss"] for seed, run in self.runs[rate].items()}

    def loss(self, rate):
        return statistics.mean(self.losses(rate).values()) if self.runs[rate] else float("inf")

    def rates(self):
        return [rate for rate in self.study.arguments.rates if self.runs[rate]]

    def best_rate(self):
        return min(self.rates(), key=self.loss)

    def is_stable(self, rate):
        return all(loss <= STABLE * self.loss(self.best_rate()) for loss in self.losses(rate).values())

    def highest_stable_rate(self):
        """Up to which, from the best rate on, every rate is stable."""
        highest = self.best_rate()
        for rate in sorted(self.rates(), key=float):
            if float(rate) <= float(highest):
                continue
            if not self.is_stable(rate):
                break
            highest = rate
        return highest

    def probes(self, rate):
        return [self.study.probe(run) for run in self.runs[rate].values() if not run.diverged]

    def mean_of(self, rate, measure):
        """The mean over seeds of measure(probe); nan where every run has diverged."""
        values = [measure(probe) for probe in self.probes(rate)]
        return statistics.mean(values) if values else float("nan")

    def spikes(self, rates):
        warmup = 2 * SPIKE_STEPS  # the first steps fall by nats
        return sum(count_spikes(run.curve("loss")[1], warmup) for rate in rates for run in self.runs[rate].values())

    def share_of_casts(self, rates, key):
        rows = [row for rate in rates for run in self.runs[rate].values() for row in run.metrics()]
        cast = sum(row["fp8_cast"] for row in rows)
        return sum(row[key] for row in rows) / cast if cast else None


def largest_residual(probe):
    return probe["largest_residual"]


def first_token_share(probe):
    """Of the block with the largest one."""
    return max(block["first_token_share"] for block in probe["blocks"])


def gate_mean(probe):
    return statistics.mean(block["gate_mean"] for block in probe["blocks"])


def gate_cell(variant, rate):
    if variant.gate == "none":
        return ""
    layers = zip(*([block["gate_mean"] for block in probe["blocks"]] for probe in variant.probes(rate)))
    return ", ".join(f"{statistics.mean(layer):.2f}" for layer in layers)


def percent(value, digits):
    return "" if value is None else f"{100 * value:.{digits}f}%"


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def loss_table(variants):
    rates = variants[0].study.arguments.rates
    rows = []
    for variant in variants:
        cells = []
        for rate in rates:
            losses = list(variant.losses(rate).values())
            finite = [loss for loss in losses if loss != float("inf")]
            mark = "" if not losses or variant.is_stable(rate) else " ✗"
            text = f"{statistics.mean(finite):.4f}{mark}" if finite else ""
            cells.append(text + (f" ({len(losses) - len(finite)} of {len(losses)} not finite)" if len(finite) < len(losses) else ""))
        rows.append([variant.gate, variant.recipe, *cells])
    return markdown(["gate", "recipe", *rates], rows)


def summary_table(variants):
    rows = []
    for variant in variants:
        best, rates = variant.best_rate(), variant.rates()
        highest = variant.highest_stable_rate()
        rows.append([
            variant.gate,
            variant.recipe,
            f"{variant.loss(best):.4f}",
            best,
            highest,
            str(variant.spikes(rates)),
            f"{variant.mean_of(best, largest_residual):.1f}",
            f"{variant.mean_of(rates[-1], largest_residual):.1f}",
            percent(variant.mean_of(best, first_token_share), 1),
            percent(variant.share_of_casts(rates, "fp8_saturated"), 5),
            percent(variant.share_of_casts(rates, "fp8_underflowed"), 3),
            gate_cell(variant, best),
        ])
    head = ["gate", "recipe", "best loss", "at rate", "highest stable rate", "spikes, all runs", "largest activation, best rate"]
    head += ["largest activation, highest rate", "first-token share, best rate", "saturated", "underflowed", "gate mean by block, best rate"]
    return markdown(head, rows)


def difference_cells(a, b, rates):
    """Losses of a against b at the same rate and seed: mean ± standard error in percent, and their number."""
    pairs = [(a.losses(rate)[seed], b.losses(rate)[seed]) for rate in rates for seed in a.runs[rate] if seed in b.runs[rate]]
    percents = [100 * (one / other - 1) for one, other in pairs if float("inf") not in (one, other)]
    if not percents:
        return ["", "0"]
    return [percent_and_error(percents), str(len(percents))]


def difference_table(variants):
    """FP8 against BF16 for each gate, and gates against none for each recipe, over the rates at which both are stable."""
    same_gate = [(a, b) for a, b in itertools.permutations(variants, 2) if a.gate == b.gate and b.recipe == "bf16"]
    same_recipe = [(a, b) for a, b in itertools.permutations(variants, 2) if a.recipe == b.recipe and b.gate == "none"]
    rows = []
    for a, b in same_gate + same_recipe:
        rates = [rate for rate in a.rates() if rate in b.rates() and a.is_stable(rate) and b.is_stable(rate)]
        rows.append([f"{a.gate}, {a.recipe}", f"{b.gate}, {b.recipe}", *difference_cells(a, b, rates)])
    return markdown(["", "against", "loss", "pairs"], rows)


def panel(axes, variants, values, title, logarithmic=True):
    for variant in variants:
        style = {"linestyle": "-" if variant.recipe == "bf16" else "--", "marker": "o.xs+"[RECIPES.index(variant.recipe)]}
        rates = variant.rates()
        axes.plot([float(rate) for rate in rates], [values(variant, rate) for rate in rates],
                  color=f"C{GATES.index(variant.gate)}", label=f"{variant.gate}, {variant.recipe}", linewidth=1, **style)
    axes.set(xscale="log", xlabel="learning rate", title=title)
    if logarithmic:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")


def plot_rates(variants, path):
    figure, panels = pyplot().subplots(1, 2, figsize=(11, 4.2))
    panel(panels[0], variants, lambda variant, rate: variant.loss(rate), "validation loss, nats")
    panel(panels[1], variants, lambda variant, rate: variant.loss(rate), "the same, near the best")
    best = min(variant.loss(variant.best_rate()) for variant in variants)
    panels[1].set(yscale="linear", ylim=(0.99 * best, 1.15 * best))
    panels[0].legend(fontsize="small")
    save_figure(figure, path)


def plot_inside(variants, path):
    figure, panels = pyplot().subplots(1, 3, figsize=(14, 4.2))
    panel(panels[0], variants, lambda variant, rate: variant.mean_of(rate, largest_residual), "largest activation of the residual stream")
    panel(panels[1], variants, lambda variant, rate: variant.mean_of(rate, first_token_share), "first-token share, largest block", False)
    gated = [variant for variant in variants if variant.gate != "none"]
    panel(panels[2], gated, lambda variant, rate: variant.mean_of(rate, gate_mean), "mean gate", False)
    panels[0].legend(fontsize="small")
    save_figure(figure, path)


def parse_arguments():
    parser = study_parser(__doc__, seeds=[1, 2, 3], jobs=2)
    parser.add_argument("--gates", nargs="+", choices=GATES, default=GATES)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES[:4])
    parser.add_argument("--rates", nargs="+", default=RATES)
    parser.add_argument("--report-only", action="store_true")
    return parser.parse_args()


def report(study):
    a = study.arguments
    variants = [Variant(study, gate, recipe) for gate in a.gates for recipe in a.recipes]
    variants = [variant for variant in variants if variant.rates()]
    if not variants:
        raise SystemExit(f"{a.out}: no run of this grid is finished")
    done = sum(len(runs) for variant in variants for runs in variant.runs.values())
    heading = f"{done} of {len(study.grid())} runs are finished; ✗: not stable, at least one seed ends more than {STABLE - 1:.0%} above the best."
    tables = [heading, loss_table(variants), summary_table(variants), difference_table(variants)]
    (a.out / "table.md").write_text("\n\n".join(tables) + "\n")
    print("\n\n".join(tables))
    plot_rates(variants, a.out / "rates.svg")
    plot_inside(variants, a.out / "inside.svg")


def main():
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    study = Study(arguments)
    if not arguments.report_only:
        study.check_recipes()
        in_parallel(arguments.jobs, study.finish, study.grid())
    report(study)


if __name__ == "__main__":
    main()
