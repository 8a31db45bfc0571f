# SPDX-License-Identifier: MIT
"""The operators called directly, with what nobody should give them; and what the package must never call."""

import ast
import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.overrides import TorchFunctionMode  # noqa: E402

from halotile import _torch  # noqa: E402
from halotile.engine import torch_verbs  # noqa: E402
from halotile.engine.kernel_check import compare  # noqa: E402

PACKAGE = Path(__file__).parents[1] / "python" / "halotile"


def read_arguments():
    windows, image = torch.zeros(2, 3, 10, 12), torch.zeros(3, 20, 30)
    return [windows, image, [20, 30], [0, 20], [-2, 8, 1, 0], [-2, 9, 1, 0], 0, 3, 1.0, 1.0, 0.0]


def accumulate_arguments():
    kept = [[0, 6, -2, 6, 1, 0, 3, 18], [0, 8, -2, 8, 1, 0, 3, 24]]
    tables = torch.ones(3, 8), torch.ones(3, 9)
    return [torch.zeros(3, 12, 24), torch.zeros(2, 3, 10, 12), *tables, [0, 0, 6, 16], 0, *kept, 0]


def finish_arguments():
    band, bad = torch.ones(3, 12, 24), torch.tensor([0, -1], dtype=torch.int32)
    return [torch.zeros(3, 6, 24), band, torch.ones(18), torch.ones(24), bad, 0, 0, 0, 1.0, 1.0, 0.0, False]


ARGUMENTS = {"read_tiles": read_arguments, "accumulate": accumulate_arguments, "finish_rows": finish_arguments}


def call(name, arguments):
    moved = [value.to("fakemps") if isinstance(value, torch.Tensor) else value for value in arguments]
    getattr(torch.ops.halotile, name)(*moved)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_good_arguments_are_taken(fake_mps, name):
    call(name, ARGUMENTS[name]())
    assert sum(fake_mps.launches().values()) == 1


WRONG = [
    ("read_tiles", 0, torch.zeros(2, 3, 10), "windows must have 4 dimensions"),
    ("read_tiles", 0, torch.zeros(2, 4, 10, 12), "image must be .channels, rows, columns. as windows"),
    ("read_tiles", 0, torch.zeros(2, 3, 10, 12, dtype=torch.int64), "float32 alone"),
    ("read_tiles", 1, torch.zeros(3, 19, 30), "image must hold the strip's rows"),
    ("read_tiles", 1, torch.zeros(3, 20, 31), "image must hold the strip's rows"),
    ("read_tiles", 2, [20], "size must have 2 numbers"),
    ("read_tiles", 3, [5, 25], "image must hold the strip's rows"),
    ("read_tiles", 6, -1, "size and tiles must be above 0"),
    ("read_tiles", 7, 0, "size and tiles must be above 0"),
    ("read_tiles", 4, [2**40, 0, 0, 0], "does not fit 32 bits"),
    ("accumulate", 0, torch.zeros(3, 0, 24), "band must "),
    ("accumulate", 0, torch.zeros(4, 12, 24), "band must have outputs' channels"),
    ("accumulate", 0, torch.zeros(3, 12, 24, dtype=torch.float16), "band must be float32"),
    ("accumulate", 1, torch.zeros(2, 3, 5, 12), "outputs must cover what tiles keep"),
    ("accumulate", 2, torch.ones(3, 5), "weights must cover what tiles keep"),
    ("accumulate", 3, torch.ones(1, 9), "weights must cover what tiles keep"),
    ("accumulate", 4, [0, 20, 6, 16], "box must lie in the band"),
    ("accumulate", 4, [-1, 0, 6, 16], "box must have at most the band's rows"),
    ("accumulate", 4, [0, 0, 13, 16], "box must have at most the band's rows"),
    ("accumulate", 4, [2**31 - 1, 0, 6, 16], "does not fit 32 bits"),
    ("read_tiles", 6, 2**31 - 1, "does not fit 32 bits"),
    ("accumulate", 8, 8, "tiles must be of the plan"),
    ("finish_rows", 0, torch.zeros(3, 13, 24), "rows must be of the band"),
    ("finish_rows", 0, torch.zeros(3, 6, 25), "rows must lie in the band"),
    ("finish_rows", 0, torch.zeros(3, 6, 24, dtype=torch.uint8), "integers must be clamped"),
    ("finish_rows", 2, torch.ones(5), "ny and nx must cover the rows"),
    ("finish_rows", 4, torch.zeros(3, dtype=torch.int32), "bad must be two int32"),
    ("finish_rows", 5, -1, "rows must lie in the band"),
    ("finish_rows", 7, -4, "rows must lie in the band"),
    ("finish_rows", 6, 2**40, "rows must lie in the band"),
]


@pytest.mark.parametrize(("name", "index", "value", "text"), WRONG)
def test_wrong_arguments_are_refused(fake_mps, name, index, value, text):
    arguments = ARGUMENTS[name]()
    arguments[index] = value
    with pytest.raises(RuntimeError, match=text):
        call(name, arguments)
    assert not fake_mps.launches()


def test_rows_left_of_the_image_are_refused(fake_mps):
    arguments = finish_arguments()
    arguments[6] = arguments[7] = -4
    with pytest.raises(RuntimeError, match="rows must lie in the band"):
        call("finish_rows", arguments)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arrays_of_two_devices_are_refused(fake_mps, name):
    places = [i for i, value in enumerate(ARGUMENTS[name]()) if isinstance(value, torch.Tensor)]
    for i in places:
        arguments = ARGUMENTS[name]()
        moved = [
            value.to("fakemps") if isinstance(value, torch.Tensor) and k != i else value
            for k, value in enumerate(arguments)
        ]
        with pytest.raises(RuntimeError, match="all arrays must be on one device"):
            getattr(torch.ops.halotile, name)(*moved)
    assert not fake_mps.launches()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_torch_finds_the_operators_well_made(fake_mps, name):
    """Schemas say what is written to, tracers can see through them."""
    arguments = [v.to("fakemps") if isinstance(v, torch.Tensor) else v for v in ARGUMENTS[name]()]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.halotile, name), tuple(arguments), test_utils=checks)


NUMBERS = st.integers(-40, 40) | st.sampled_from([2**31 - 1, -(2**31), 2**31, 2**62, -(2**62)])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(ARGUMENTS)), data=st.data())
def test_no_kernel_leaves_its_arrays(fake_mps, name, data):
    """Allocations end where memory faults: whatever is not refused stays inside."""
    fake_mps.set_guard(True)
    arguments = ARGUMENTS[name]()
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.sampled_from([k for k, v in enumerate(arguments) if isinstance(v, (int, list))]))
        if isinstance(arguments[i], list):
            arguments[i][data.draw(st.integers(0, len(arguments[i]) - 1))] = data.draw(NUMBERS)
        elif not isinstance(arguments[i], bool):
            arguments[i] = data.draw(NUMBERS)
    try:
        call(name, arguments)
    except RuntimeError:
        assert not fake_mps.take_violations()
    fake_mps.set_guard(False)


def test_the_module_refuses_nonsense():
    with pytest.raises(RuntimeError, match="/no/such/library is not loaded: import torch first"):
        _torch.attach("MPS", "/no/such/library")
    with pytest.raises(TypeError):
        _torch.open(7)
    with pytest.raises(TypeError):
        _torch.attach("MPS")


# ---- what must never be called ---------------------------------------------------------------------------------------

FORBIDDEN = {"pad", "pin_memory", "addcmul_", "addcdiv_", "lerp_", "index_add_", "index_put_", "_host_alias_storage"}
SYNCHRONOUS = {"synchronize", "nonzero", "item", "tolist"}
MAY_WAIT = {("engine/device.py", "first_nonfinite"), ("engine/device.py", "nonfinite")}  # before and after the loop


def calls(file):
    """(function it is in, name called, keywords) for every call in a file."""
    tree = ast.parse(file.read_text())
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.Module)):
            for node in itertools.chain.from_iterable(ast.walk(child) for child in ast.iter_child_nodes(function)):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    yield getattr(function, "name", ""), name, {keyword.arg for keyword in node.keywords}


@pytest.mark.parametrize(
    "name",
    [
        "engine/device.py",
        "engine/torch_verbs.py",
        "engine/metal.py",
        "models/model.py",
        "run/windows.py",
        "run/tiles.py",
    ],
)
def test_forbidden_calls(name):
    seen = list(calls(PACKAGE / name))
    assert seen
    for function, called, keywords in seen:
        assert called not in FORBIDDEN, (name, function, called)
        assert "non_blocking" not in keywords, (name, function)
        if called in SYNCHRONOUS and name in ("engine/device.py", "engine/torch_verbs.py", "run/windows.py"):
            assert function == "" or (name, function) in MAY_WAIT, (name, function, called)


def test_only_harmless_operations_write_to_views():
    written = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            name = getattr(function, "__name__", "")
            in_place = name.endswith("_") and not name.endswith("__") and isinstance(args[0], torch.Tensor)
            if in_place and not args[0].is_contiguous():
                written.add(name)
            return function(*args, **(kwargs or {}))

    class Watched:
        @staticmethod
        def watched(verb):
            def run(*args):
                with Watch():
                    verb(*args)

            return staticmethod(run)

    verbs = type("Verbs", (), {name: Watched.watched(getattr(torch_verbs, name)) for name in torch_verbs.__all__})
    assert all(result.fine for result in compare(verbs, torch.device("cpu")))
    assert written == {"add_", "copy_"}
