# SPDX-License-Identifier: MIT
"""examples/video.py: frames in, frames out, one restorer, batches across frames."""

import importlib.util
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from halotile import TiledRestorer, restore_tiled

torch = pytest.importorskip("torch")

EXAMPLE = Path(__file__).parents[1] / "examples" / "video.py"

# ffprobe and ffmpeg for the test: a "video" is a .npy file of its frames.
FAKE = """#!{python}
import json, sys
import numpy as np
words = sys.argv[1:]
if "ffprobe" in sys.argv[0]:
    height, width = np.load(words[-1], mmap_mode="r").shape[1:3]
    print(json.dumps({{"streams": [{{"height": height, "width": width, "r_frame_rate": "30000/1001"}}]}}))
elif words[-1] == "-":
    sys.stdout.buffer.write(np.load(words[words.index("-i") + 1]).tobytes())
else:
    width, height = map(int, words[words.index("-s") + 1].split("x"))
    assert words[words.index("-r") + 1] == "30000/1001"
    data = np.frombuffer(sys.stdin.buffer.read(), np.uint8)
    np.save(open(words[-1], "wb"), data.reshape(-1, height, width, 3))
"""


class Larger(torch.nn.Module):
    """Twice the size; counts the windows of each call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")


@pytest.fixture
def video():
    spec = importlib.util.spec_from_file_location("video", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frames_of(count):
    return np.random.default_rng(0).integers(0, 256, (count, 27, 48, 3)).astype(np.uint8)


def test_frames_in_and_frames_out(video):
    frames, model = frames_of(10), Larger()
    restorer = TiledRestorer(model, batch_size=4, halo=2, phase=1, scale=2)
    got = list(video.restored(iter(frames), restorer, 4))
    want = [restore_tiled(frame, Larger(), halo=2, phase=1, scale=2) for frame in frames]
    np.testing.assert_array_equal(got, want)
    assert model.calls == [4, 4, 2]
    assert list(video.restored(iter([]), restorer)) == []


def test_from_file_to_file(video, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("ffmpeg", "ffprobe"):
        Path(name).write_text(FAKE.format(python=sys.executable))
        os.chmod(name, stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    Path("larger.py").write_text(
        "import torch\n\ndef net(x):\n    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    frames = frames_of(7)
    np.save("in.npy", frames)
    monkeypatch.setattr(sys, "argv", ["video.py", "in.npy", "out.mp4", "--model", "larger:net", "--batch", "3"])
    video.main()
    assert capsys.readouterr().out == "out.mp4: 7 frames\n"
    np.testing.assert_array_equal(np.load("out.mp4"), frames.repeat(2, 1).repeat(2, 2))
