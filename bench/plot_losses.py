"""Draws the training and validation losses of runs into one figure.

usage: plot_losses.py OUTPUT.svg LABEL=RUN [LABEL=RUN ...]

RUN is a run folder. Training losses are means of 25 steps. Needs matplotlib (bench/requirements.txt).
"""

import sys
from pathlib import Path

from training_runs import Run, pyplot, save_figure, smooth

THIN = 10  # every tenth point of a smoothed curve: a figure of some tens of kilobytes


def main():
    if len(sys.argv) < 3 or not all("=" in item for item in sys.argv[2:]):
        raise SystemExit(__doc__)
    figure, (training, validation) = pyplot().subplots(1, 2, figsize=(11, 4.2))
    for item in sys.argv[2:]:
        label, folder = item.split("=", 1)
        run = Run(Path(folder))
        steps, losses = run.curve("loss")
        training.plot(steps[::THIN], smooth(losses)[::THIN], linewidth=0.8, label=label)
        validation.plot(*run.curve("val_loss"), linewidth=1, marker=".", label=label)
    for axes, title in ((training, "training loss, nats (mean of 25 steps)"), (validation, "validation loss, nats")):
        axes.set(xlabel="step", title=title, yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    save_figure(figure, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
