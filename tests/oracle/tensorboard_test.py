"""Event files of a training run, read with tensorboardX's checksums and messages, against metrics.jsonl.

usage: tensorboard_test.py QUAVER CONFIG
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2

TEXT = "the quick brown fox jumps over the lazy dog\n" * 40


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(content):
    """TFRecord frames: length, masked CRC32C of the length, message, masked CRC32C of the message."""
    events, at = [], 0
    while at < len(content):
        length, length_crc = struct.unpack_from("<QI", content, at)
        assert length_crc == masked(content[at : at + 8]), "length"
        data = content[at + 12 : at + 12 + length]
        (data_crc,) = struct.unpack_from("<I", content, at + 12 + length)
        assert data_crc == masked(data), "message"
        events.append(event_pb2.Event.FromString(data))
        at += 16 + length
    return events


def train(quaver, config, folder, *more):
    command = [quaver, "train", config, f"data.path={folder}/text", f"run.dir={folder}/run", "data.val_fraction=0.3",
               "data.piece_bytes=1024", "train.tensorboard=true", "train.eval_every=2", *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def scalars(events):
    return {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}


def check_start(events, first_step):
    assert events[0].file_version == "brain.Event:2", events[0]
    assert events[1].session_log.status == event_pb2.SessionLog.START, events[1]
    assert events[1].step == first_step, events[1]
    assert all(a.wall_time <= b.wall_time for a, b in zip(events, events[1:]))


def main():
    quaver, config = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        run = folder / "run"
        (folder / "text").mkdir()
        for i in range(12):
            (folder / "text" / f"{i}.txt").write_text(f"document {i}\n" + TEXT)
        train(quaver, config, folder, "train.steps=4")
        train(quaver, config, folder, "train.steps=6")
        files = [read_events(file.read_bytes()) for file in sorted(run.glob("events.out.tfevents.*"))]
        assert len(files) == 2, "one a process"
        check_start(files[0], 1)
        check_start(files[1], 5)
        found = scalars(files[0] + files[1])
        expected = {(line["step"], tag): float(np.float32(value))
                    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
                    for tag, value in line.items() if tag != "step"}
        assert found == expected, (found, expected)
        assert (6, "val_loss") in found and (5, "val_loss") not in found
    print(f"event files: {len(found)} scalars, those of metrics.jsonl")


if __name__ == "__main__":
    main()
