# SPDX-License-Identifier: MIT
"""The process that forks a child for each case: everything is imported once, nothing is run before the fork.

Reads lines of JSON from stdin, {"folder", "arguments", "processor", "memory"}, runs `halotile ARGUMENTS` in a child in
that folder, and answers {"status", "signal", "processor", "wall", "memory", "text"}.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from typing import Any

LONGEST_TEXT = 20_000
BACKSTOP = 4 << 30  # bytes of addresses beside those of the zygote; memory itself is measured


def _imports() -> None:
    import numcodecs  # noqa: F401
    import numpy as np
    import onnxruntime
    import pillow_heif  # noqa: F401
    import pyvips  # noqa: F401
    import torch
    import torch._export.serde.serialize
    import torch.export.pt2_archive._package  # noqa: F401
    import zarr  # noqa: F401

    import halotile.cli.restore
    import halotile.models.checkpoint
    import halotile.models.exported
    import halotile.models.ncnn
    import halotile.to_file  # noqa: F401

    from ..published import spandrel_imported

    with spandrel_imported():
        pass
    onnxruntime.set_default_logger_severity(4)
    np.zeros(1)


def identity(windows: Any) -> Any:
    return windows


def _held(name: str) -> int:
    """Bytes, by /proc."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) << 10


def _child(job: dict[str, Any], told: int) -> None:
    """Runs the command and reports the memory; never returns."""
    status = 70
    try:
        os.chdir(job["folder"])
        os.environ.update(HOME=job["folder"], TMPDIR=f"{job['folder']}/tmp", HALOTILE_CACHE=f"{job['folder']}/cache")
        out = os.open("text", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for stream in (1, 2):
            os.dup2(out, stream)
        for number in (signal.SIGINT, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (job["processor"], job["processor"] + 1))
        resource.setrlimit(resource.RLIMIT_AS, (_held("VmSize") + BACKSTOP,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20, 256 << 20))
        before = _held("VmRSS")
        from halotile.cli import main

        status = main(job["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(told, b"%d" % (_held("VmHWM") - before))
    except SystemExit as ended:
        sys.stderr.flush()
        status = ended.code if isinstance(ended.code, int) else 71
        os.write(told, b"%d" % (_held("VmHWM") - before))
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    listens, tells = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.close(listens)
        _child(job, tells)
    os.close(tells)
    told = os.read(listens, 100)  # nothing, where the child was killed
    os.close(listens)
    _, ended, used = os.wait4(child, 0)
    with open(f"{job['folder']}/text", encoding="utf-8", errors="backslashreplace") as file:
        text = file.read(LONGEST_TEXT)
    return {
        "status": os.waitstatus_to_exitcode(ended) if os.WIFEXITED(ended) else None,
        "signal": os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else None,
        "processor": used.ru_utime + used.ru_stime,
        "wall": time.monotonic() - started,
        "memory": int(told) if told else None,
        "text": text,
    }


def main() -> None:
    _imports()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
