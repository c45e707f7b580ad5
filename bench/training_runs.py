"""Runs of `quaver train` for comparisons: any number side by side, kept, continued where they stopped."""

import argparse
import json
import statistics
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

NON_FINITE = 4  # exit code of a run whose loss or gradient is not finite
USAGE = 2


@dataclass
class Run:
    """One training run: its folder, and the keys in which it differs from the run file."""

    folder: Path
    settings: dict = field(default_factory=dict)

    @property
    def result(self):
        """What `quaver train --json` printed, or {"diverged": message}; None for a run that is not finished."""
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def diverged(self):
        return "diverged" in (self.result or {})

    def metrics(self):
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def curve(self, key):
        """(steps, values) of one metric."""
        points = [(row["step"], row[key]) for row in self.metrics() if key in row]
        return [step for step, _ in points], [value for _, value in points]

    def report(self, program, name, *command):
        """The JSON that `quaver COMMAND` prints about the run; asked once, then kept as NAME.json in the folder."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            done = subprocess.run([program, *command, "--json"], check=True, stdout=subprocess.PIPE)
            path.write_bytes(done.stdout)
        return json.loads(path.read_text())


def train(program, config, overrides, run):
    """Trains until the run is finished or has diverged; a run that was stopped goes on. Other failures raise."""
    if run.result is not None:
        return
    keys = {**overrides, **run.settings, "run.dir": run.folder.resolve(), "threads": 1}
    command = [program, "train", config, "--json", *(f"{key}={value}" for key, value in keys.items())]
    print(" ".join(map(str, command)), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode == NON_FINITE:
        result = json.dumps({"diverged": done.stderr.strip().splitlines()[-1]})
    elif done.returncode == 0:
        result = done.stdout
    else:
        raise SystemExit(f"{run.folder.name}: exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    (run.folder / "result.json").write_text(result)


def in_parallel(jobs, work, items):
    """work(item) for all items in order, `jobs` at a time; ends with the first failure."""
    with ThreadPoolExecutor(jobs) as pool:
        pending = [pool.submit(work, item) for item in items]
        try:
            for done in pending:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def percent_and_error(values):
    """"+0.12% ± 0.05%": the mean, and its standard error where there are several values."""
    mean = f"{statistics.mean(values):+.2f}%"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}%"


def smooth(values, width=25):
    """The mean of the last `width` values at each place."""
    return [statistics.mean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


def pyplot():
    """matplotlib for files whose bytes depend on the data alone."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "quaver"
    import matplotlib.pyplot

    return matplotlib.pyplot


def save_figure(figure, path):
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def study_parser(description, seeds, jobs):
    """The options that all studies share; `overrides` is a list of "key=value"."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("quaver", "config", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--jobs", type=int, default=jobs)
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", dest="overrides", help="more keys of the run file")
    return parser
