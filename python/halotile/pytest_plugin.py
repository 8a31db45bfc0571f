# SPDX-License-Identifier: MIT
"""The plugin for pytest, there once halotile is installed. It imports neither NumPy nor torch until it is used.

restored      fixture: restored(image, model, **options) restores an image; models are looked at once a session
golden_image  fixture: golden_image(image) compares with a file in golden/, beside the test's file
--halotile-update   writes golden images anew
--halotile-report   folder for heat maps of images that differ; by default that of --junitxml, else halotile-report/

Where an assertion of `halotile.testing` about two images fails, a heat map of their differences is saved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import pytest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from .options import RestoreOptions
    from .plan import TilePlan
    from .restore import TiledRestorer
    from .run.report import RunInfo

__all__ = ["GoldenImage", "Restored", "golden_image", "restored"]

FOLDER = "golden"
REPORT = "halotile-report"


class Session:
    """What the plugin keeps for a session."""

    def __init__(self) -> None:
        self.restorers: dict[Any, tuple[Any, TiledRestorer]] = {}
        self.written: list[Path] = []
        self.heatmaps: list[Path] = []


SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("halotile")
    group.addoption("--halotile-update", action="store_true", help="write golden images anew")
    text = "folder for heat maps of images that differ (default: that of --junitxml, else halotile-report)"
    group.addoption("--halotile-report", metavar="DIR", help=text)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SESSION] = Session()


# ---- fixtures --------------------------------------------------------------------------------------------------------


class Restored:
    """Restores images: ``restored(image, model, halo=18)``. The image may be the path of a file.

    Attributes:
        last_run: a RunInfo: what the latest call did; a failing test shows it.
    """

    def __init__(self, session: Session):
        self._session = session
        self.last_run: RunInfo | None = None

    @overload
    def __call__(
        self, image: np.ndarray, model: Callable[..., Any], **options: Unpack[RestoreOptions]
    ) -> np.ndarray: ...
    @overload
    def __call__(self, image: Tensor, model: Callable[..., Any], **options: Unpack[RestoreOptions]) -> Tensor: ...
    @overload
    def __call__(self, image: Any, model: Callable[..., Any], **options: Unpack[RestoreOptions]) -> Any: ...
    def __call__(self, image: Any, model: Callable[..., Any], **options: Unpack[RestoreOptions]) -> Any:
        from .files.pairs import read_array
        from .restore import TiledRestorer

        key = id(model), repr(sorted(options.items()))
        if key not in self._session.restorers:  # holds the model, so that its id stays its own
            self._session.restorers[key] = model, TiledRestorer(model, **options)
        _, restorer = self._session.restorers[key]
        result = restorer(read_array(image) if isinstance(image, str | os.PathLike) else image)
        self.last_run = restorer.last_run
        return result


@pytest.fixture
def restored(request: pytest.FixtureRequest) -> Iterator[Restored]:
    """A function that restores an image with a model and options, as `restore_tiled` does."""
    one = Restored(request.config.stash[SESSION])
    request.node.stash[RESTORED] = one
    yield one


RESTORED = pytest.StashKey[Restored]()


class GoldenImage:
    """Compares an image with the one that an earlier run wrote: ``golden_image(result)``.

    Pictures (uint8, uint16 with up to four channels, last) are kept as PNG, for which halotile[cli] must be installed;
    all others, and names that end in .npy, as .npy files.
    """

    def __init__(self, path: Path, test: str, session: Session, updates: bool):
        self._folder, self._test, self._session, self._updates = (
            path.parent / FOLDER / path.stem,
            test,
            session,
            updates,
        )
        self._count = 0

    def __call__(
        self,
        image: Any,
        name: str | None = None,
        *,
        rtol: float | None = None,
        atol: float | None = None,
        plan: TilePlan | None = None,
        layout: str | None = None,
    ) -> None:
        """Asserts that the image is close to the golden one.

        Args:
            image: an array or tensor. name: of its file; None: the test's.

        Keyword Args:
            rtol, atol, plan, layout: as for `halotile.testing.assert_close`.
        """
        from .testing import assert_close

        __tracebackhide__ = True
        path = self.path_of(image, name)
        array = _as_array(image)
        if self._updates:
            _write(path, array)
            self._session.written.append(path)
            return
        if not path.exists():
            pytest.fail(f"there is no golden image {path}; pytest --halotile-update writes it", pytrace=False)
        try:
            assert_close(array, _read(path), rtol=rtol, atol=atol, plan=plan, layout=layout)
        except AssertionError as error:
            error.args = (f"{error.args[0]}\nexpected: {path}; pytest --halotile-update writes it anew",)
            raise

    def path_of(self, image: Any, name: str | None = None) -> Path:
        """Where the golden image is."""
        if name is None:
            self._count += 1
            name = self._test if self._count == 1 else f"{self._test}-{self._count}"
        suffix = "" if name.endswith((".png", ".npy")) else ".png" if _is_picture(image) else ".npy"
        return self._folder / f"{_plain(name)}{suffix}"


@pytest.fixture
def golden_image(request: pytest.FixtureRequest) -> GoldenImage:
    """A function that compares an image with a golden one in golden/, beside the test's file."""
    config = request.config
    return GoldenImage(request.path, request.node.name, config.stash[SESSION], config.getoption("--halotile-update"))


def _plain(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def _as_array(image: Any) -> Any:
    import numpy as np

    if isinstance(image, np.ndarray):
        return image
    tensor = image.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def _is_picture(image: Any) -> bool:
    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] <= 4 and min(image.shape[:2]) > 4)
    return fits and str(image.dtype).removeprefix("torch.") in ("uint8", "uint16")


def _write(path: Path, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        import numpy as np

        np.save(path, array)
    else:
        from .files.picture import write_image

        write_image(path, array)


def _read(path: Path) -> Any:
    from .files.pairs import read_array

    return read_array(path)


# ---- reports ---------------------------------------------------------------------------------------------------------


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    if call.excinfo is None:
        return
    report = outcome.get_result()  # type: ignore[attr-defined]
    one = item.stash.get(RESTORED, None)
    if one is not None and one.last_run is not None and call.when == "call":
        report.sections.append(("halotile run", str(one.last_run)))
    heatmap = getattr(call.excinfo.value, "heatmap", None)
    if type(call.excinfo.value).__name__ == "ImagesDiffer" and (picture := heatmap and heatmap()) is not None:
        path = _folder(item.config) / f"{_plain(item.nodeid)}.png"
        from .notebook.png import png_bytes

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(picture))
        report.sections.append(("halotile heat map", f"{path}: from no difference (dark) to the largest (yellow)"))
        item.user_properties.append(("halotile_heatmap", str(path)))  # of the whole test: for the JUnit document
        item.config.stash[SESSION].heatmaps.append(path)


def _folder(config: pytest.Config) -> Path:
    given, junit = config.getoption("--halotile-report"), config.getoption("xmlpath", None)
    if given is not None:
        return config.invocation_params.dir / given
    return (config.invocation_params.dir / junit).parent if junit else config.rootpath / REPORT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = config.stash[SESSION]
    for what, paths in (("golden images written", session.written), ("heat maps of differences", session.heatmaps)):
        if paths:
            terminalreporter.section(f"halotile: {what}")
            for path in paths:
                terminalreporter.write_line(str(path))
