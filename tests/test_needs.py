# SPDX-License-Identifier: MIT
"""What a model's file says about windows is kept to by every run, whoever starts it."""

import pickle

import numpy as np
import pytest

from halotile import TiledRestorer, iter_bands, plan_tiles, restore_tiled
from halotile.models.needs import Needs, needs_of


class Picky:
    """A mean of 3x3 pixels on arrays, zeros beyond the window, that takes windows by its needs only."""

    def __init__(self, **needs):
        self.needs, self.seen = Needs(**needs), set()

    def __call__(self, windows):
        height, width = windows.shape[2:]
        self.seen.add((height, width))
        needs = self.needs
        assert height % needs.multiple == width % needs.multiple == 0, (height, width)
        assert min(height, width) >= needs.minimum and (height == width or not needs.square), (height, width)
        assert all(side in (None, got) for side, got in zip(needs.window, (height, width), strict=True))
        return mean3(windows)


def mean3(windows):
    padded = np.pad(windows, [(0, 0), (0, 0), (1, 1), (1, 1)])
    height, width = windows.shape[2:]
    parts = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.sum(parts, axis=0, dtype=np.float32) / np.float32(9)


def whole(image, boundary):
    """What tiles must add up to."""
    if boundary == "reflect":
        padded = np.pad(image, [(1, 1), (1, 1), (0, 0)], mode="reflect")
        return mean3(padded.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)[1:-1, 1:-1]
    return mean3(image.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)


NEEDS = [
    {"multiple": 8},
    {"multiple": 4, "minimum": 24},
    {"minimum": 50},
    {"multiple": 8, "square": True},
    {"window": (32, 40)},
    {"window": (None, 33)},
    {"window": (16, None), "multiple": 4},
    {"window": (64, 64), "multiple": 16},
]


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("size", [(70, 90), (33, 41), (128, 64), (31, 200), (7, 100), (5, 6)])
@pytest.mark.parametrize("needs", NEEDS, ids=str)
def test_windows_are_what_the_model_takes(rng, needs, size, boundary):
    model = Picky(**needs)
    image = rng.random((*size, 3), np.float32)
    result = restore_tiled(image, model, halo=2, tile_size=24, boundary=boundary, scale=1, phase=1)
    assert len(model.seen) == 1
    plan = plan_tiles(image.shape, halo=2, tile_size=24, boundary=boundary, needs=model.needs)
    assert model.seen == {plan.window} and pickle.loads(pickle.dumps(plan)) == plan
    least, multiple = model.needs.least, model.needs.multiple
    # A side that is completed by reflection has no edge where the model could pad it with zeros.
    ends = [side if side >= low and side % multiple == 0 else side - 1 for side, low in zip(size, least, strict=True)]
    y, x = ends if boundary == "native" and not needs.get("square") else size
    if boundary == "reflect" or not needs.get("square"):
        np.testing.assert_allclose(result[:y, :x], whole(image, boundary)[:y, :x], atol=1e-6)


@pytest.mark.parametrize("needs", [{"window": (None, None)}, {}])
def test_no_needs_change_nothing(needs):
    assert plan_tiles((300, 500), needs=Needs(**needs)) == plan_tiles((300, 500))
    assert needs_of(mean3) == Needs() and not Needs().fixed


def test_fewest_windows_of_one_size():
    """They are spread, not shifted back at the end, and as few as can be."""
    plan = plan_tiles((100, 1000), halo=8, overlap=0, needs=Needs(window=(64, 128)))
    assert plan.window == (64, 128) and plan.grid == (3, 9)
    starts = [tile.window.x for tile in plan[:9]]
    assert max(np.diff(starts)) - min(np.diff(starts)) <= 1


def test_phases_are_multiples_of_both():
    assert plan_tiles((300, 300), phase=6, needs=Needs(multiple=4)).phase == (12, 12)
    assert plan_tiles((300, 300), phase=(2, 3), needs=Needs(square=True)).phase == (6, 6)
    assert TiledRestorer(Picky(multiple=8), phase=1).options.phase == (8, 8)


def test_the_scale_is_what_the_file_says():
    assert plan_tiles((10, 10), needs=Needs(scale=4)).output_size == (40, 40)
    assert plan_tiles((10, 10), scale="4", needs=Needs(scale=4)).output_size == (40, 40)


@pytest.mark.parametrize(
    ("needs", "options", "message"),
    [
        ({"scale": 4}, {"scale": 2}, "scale must be 4 or None for this model, not 2"),
        (
            {"window": (64, 64)},
            {"verify": 3},
            "verify must be 0 for this model, as comparing needs windows of other sizes",
        ),
        ({"square": True}, {"verify": 1}, "verify must be 0 for this model, as comparing needs windows of other sizes"),
        (
            {"window": (64, 48)},
            {"halo": 24},
            "halo must be at most 23 for this model, which takes windows of 48 columns",
        ),
        ({"window": (64, None)}, {"halo": 25, "phase": 16}, "halo must be at most 16 .* 64 rows only, with phase 16"),
        ({"window": (64, 64)}, {"phase": 5}, "phase must divide 64 for this model, .* not 5"),
        ({"window": (64, 64)}, {"halo": 8, "overlap": 48}, "overlap must be at most 47 for this model, .* not 48"),
        ({"window": (64, 64), "multiple": 24}, {}, "phase must divide 64 for this model, .* not 24"),
        ({"window": (65, 65)}, {"scale": "3/2", "halo": 4}, "phase must divide 65 for this model, .* not 2"),
    ],
)
def test_contradictions_are_refused_before_anything_runs(needs, options, message):
    model, image = Picky(**needs), np.zeros((100, 100, 3), np.uint8)
    for call in (restore_tiled, lambda *both, **more: list(iter_bands(*both, **more))):
        with pytest.raises(ValueError, match=message):
            call(image, model, **options)
    with pytest.raises(ValueError, match=message):
        plan_tiles(image.shape, **options, needs=model.needs)
    assert not model.seen


def test_needs_are_needs():
    with pytest.raises(TypeError, match=r"needs must be a halotile.models.needs.Needs, not \(8, 8\)"):
        plan_tiles((5, 5), needs=(8, 8))
    for wrong in (
        {"multiple": 0},
        {"minimum": None},
        {"scale": 0.5},
        {"scale": 0},
        {"window": (8,)},
        {"window": (0, 8)},
    ):
        with pytest.raises(ValueError, match="needs must be whole numbers from 1 on"):
            Needs(**wrong)
    with pytest.raises(ValueError, match="square must be False for a model with fixed"):
        Needs(square=True, window=(8, 8))


@pytest.mark.filterwarnings("ignore::halotile.TileSizeWarning")
def test_running_out_of_memory_ends_where_windows_cannot_shrink(rng):
    """Only the batch can."""

    class Hungry(Picky):
        def __call__(self, windows):
            if len(windows) > 1:
                raise MemoryError
            return super().__call__(windows)

    model, image = Hungry(window=(32, 32)), rng.random((70, 90, 3), np.float32)
    with pytest.warns(UserWarning, match=r"out of memory with 4 windows of 32x32"):
        result = restore_tiled(image, model, halo=2, batch_size=4)
    np.testing.assert_allclose(result, whole(image, "reflect"), atol=1e-6)

    def failing(windows):
        raise MemoryError

    failing.needs = Needs(window=(32, 32))
    with pytest.raises(MemoryError, match="out of memory with the smallest windows, 32x32"):
        restore_tiled(image, failing, halo=2)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_exported_for_one_size_through_python(rng):
    torch = pytest.importorskip("torch")
    from halotile.models.exported import open_exported

    torch.manual_seed(3)
    network = torch.nn.Conv2d(3, 3, 3, padding=1).eval()
    model = open_exported(torch.export.export(network, (torch.zeros(1, 3, 40, 44),)))
    assert needs_of(model) == Needs(window=(40, 44))
    image = rng.random((70, 90, 3), np.float32)
    for options in (
        {"halo": 2},
        {"halo": "exact", "phase": None},
        {"halo": "auto", "phase": None, "tile_size": "auto"},
    ):
        got = restore_tiled(image, model, boundary="native", **options)
        with torch.inference_mode():
            want = network(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(got, want, atol=1e-6)
    restorer = TiledRestorer(model, halo=0)
    restorer(image)
    assert restorer.last_run.how == "given" and restorer.last_run.bound is None
    with pytest.raises(ValueError, match=r"exported for windows of 40x44 \(height x width\), not 40x40"):
        model(torch.zeros(1, 3, 40, 40))


def test_what_is_found_out_about_a_model_with_needs_is_kept():
    """By what it needs, too."""
    torch = pytest.importorskip("torch")
    from halotile.inspection.known import about

    found = []
    for needs in (Needs(), Needs(multiple=2), Needs(multiple=2)):
        model = torch.nn.Identity()
        model.needs = needs
        found.append(about(model, None))
    assert None not in found and found[0] != found[1] == found[2]
