# SPDX-License-Identifier: MIT
"""A video, frame by frame: `python examples/video.py in.mp4 out.mp4 [--model NAME] [--batch 8]`.

One `TiledRestorer` does all frames, so that the model is opened and looked at once. Frames go through it in batches.
ffmpeg, which must be installed, reads and writes the video, and copies the sound.
"""

import argparse
import json
import subprocess
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import numpy as np

import halotile


def restored(frames: Iterable[np.ndarray], restorer: halotile.TiledRestorer, batch: int = 8) -> Iterator[np.ndarray]:
    """Yields the restored frames, (H, W, C) each, in order. `batch` frames are in memory at a time."""
    frames = iter(frames)
    while several := list(islice(frames, batch)):
        yield from restorer(np.stack(several))


def read(path: str) -> tuple[Iterator[np.ndarray], str]:
    """The frames of a video, and its frame rate."""
    ask = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_streams", "-of", "json", path]
    found = json.loads(subprocess.run(ask, check=True, stdout=subprocess.PIPE).stdout)["streams"][0]
    shape = found["height"], found["width"], 3

    def frames() -> Iterator[np.ndarray]:
        command = ["ffmpeg", "-v", "error", "-noautorotate", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            while len(data := process.stdout.read(int(np.prod(shape)))) == np.prod(shape):
                yield np.frombuffer(data, np.uint8).reshape(shape)

    return frames(), found["r_frame_rate"]


def write(path: str, frames: Iterator[np.ndarray], rate: str, sound_of: str) -> int:
    """Writes a video of frames with the sound of another one. Returns the number of frames."""
    first = next(frames)
    size = f"{first.shape[1]}x{first.shape[0]}"
    command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", rate, "-i", "-"]
    command += ["-i", sound_of, "-map", "0:v", "-map", "1:a?", "-c:a", "copy", "-pix_fmt", "yuv420p", path]
    count = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        for count, frame in enumerate(chain([first], frames), 1):  # noqa: B007
            process.stdin.write(frame.tobytes())
        process.stdin.close()
    if process.returncode:
        raise SystemExit(f"ffmpeg failed with status {process.returncode}")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--model", help="as for halotile restore (default: the included model)")
    parser.add_argument("--batch", type=int, default=8, help="frames in memory, and windows per call of the model")
    asked = parser.parse_args()
    restorer = halotile.TiledRestorer(halotile.load_model(asked.model), batch_size=asked.batch)
    frames, rate = read(asked.input)
    count = write(asked.output, restored(frames, restorer, asked.batch), rate, asked.input)
    print(f"{asked.output}: {count} frames")


if __name__ == "__main__":
    main()
