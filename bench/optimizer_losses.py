"""Trains one configuration with optimizer state in FP32, BF16 and FP8 over several seeds, and reports losses and bytes.

usage: optimizer_losses.py --quaver PROGRAM --config RUN.toml --data PATH --out FOLDER [--seeds 1 2] [--jobs 1]
                           [--eval-batches 200] [--set key=value ...]

Runs are made, kept and compared as by loss_parity.py. The bytes are those of the tensors in each run's last checkpoint. Writes table.md to --out.
"""

import json
import math
import struct
from pathlib import Path

from loss_parity import Study
from training_runs import Run, in_parallel, study_parser

BASELINE = "all f32"
VARIANTS = {
    BASELINE: {},
    "moments bf16": {"optimizer.moments": "bf16"},
    "moments fp8": {"optimizer.moments": "fp8"},
    "masters bf16": {"optimizer.masters": "bf16"},
    "masters bf16, moments fp8": {"optimizer.masters": "bf16", "optimizer.moments": "fp8"},
}


class OptimizerStudy(Study):
    def run(self, settings, seed):
        name = "-".join([f"{key.split('.')[1]}-{value}" for key, value in settings.items()] or ["f32"])
        return Run(self.arguments.out / f"{name}-seed{seed}", {**settings, "train.seed": seed})


def arrays(path):
    """{name: (elements, bytes)} of a safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    return {name: (math.prod(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0]) for name, entry in header.items()}


def bytes_per_parameter(run):
    """Of masters and of moments, with their scales."""
    newest = max((run.folder / "checkpoints").glob("step-????????"))
    masters, moments = arrays(newest / "model.safetensors"), arrays(newest / "optimizer.safetensors")
    parameters = sum(elements for elements, _ in masters.values())
    return [sum(size for _, size in part.values()) / parameters for part in (masters, moments)]


def parse_arguments():
    parser = study_parser(__doc__, seeds=[1, 2], jobs=1)
    parser.add_argument("--eval-batches", type=int, default=200)
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    study = OptimizerStudy(arguments, dict(item.split("=", 1) for item in arguments.overrides))
    in_parallel(arguments.jobs, study.finish, [study.run(settings, seed) for seed in arguments.seeds for settings in VARIANTS.values()])
    lines = ["| variant | masters, bytes a parameter | moments, bytes a parameter |", "|---|---|---|"]
    for name, settings in VARIANTS.items():
        masters, moments = bytes_per_parameter(study.run(settings, arguments.seeds[0]))
        lines.append(f"| {name} | {masters:.2f} | {moments:.2f} |")
    text = study.table(VARIANTS, BASELINE) + "\n\n" + "\n".join(lines) + "\n"
    (arguments.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
