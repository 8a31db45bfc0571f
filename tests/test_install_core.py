# SPDX-License-Identifier: MIT
"""The installed C core: examples/plain.c is built against it, under sanitizers, and gives what Python gives."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from halotile import restore_tiled

ROOT = Path(__file__).parents[1]
CC, CXX = os.environ.get("CC", "cc"), os.environ.get("CXX", "c++")
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = pytest.mark.skipif(
    shutil.which(CC) is None or shutil.which("make") is None, reason=f"no C compiler {CC}, or no make"
)


def run(*command, env=None):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where the core is installed, built with sanitizers."""
    folder = tmp_path_factory.mktemp("core")
    settings = [f"PREFIX={folder / 'usr'}", f"CORE_BUILD={folder / 'build'}", f"CC={CC}"]
    run("make", "-s", "-C", ROOT, "install-core", *settings, f"CORE_CFLAGS=-O1 {' '.join(SANITIZE)}")
    return folder / "usr"


def flags_of(installed):
    """What pkg-config says; where there is none, what it would say."""
    if shutil.which("pkg-config") is None:
        return [f"-I{installed}/include", f"-L{installed}/lib", "-lhalotile", "-lm"]
    env = {"PKG_CONFIG_PATH": str(installed / "lib" / "pkgconfig")}
    return run("pkg-config", "--cflags", "--libs", "halotile", env=env).split()


@pytest.fixture(scope="module")
def plain(installed):
    program = installed / "plain"
    example = ROOT / "examples" / "plain.c"
    run(CC, "-std=c11", "-O1", *WARNINGS, *SANITIZE, example, *flags_of(installed), "-o", program)
    return program


def blur(scale):
    """plain.c's model."""

    def model(windows):
        height, width = windows.shape[2:]
        padded = np.pad(windows, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        total = np.zeros_like(windows)
        for dy, wy in enumerate((1, 2, 1)):
            for dx, wx in enumerate((1, 2, 1)):
                total += np.float32(wy * wx) * padded[:, :, dy : dy + height, dx : dx + width]
        return (total / np.float32(16)).repeat(scale, 2).repeat(scale, 3)

    return model


def write_ppm(path, image, comment=b""):
    height, width, _ = image.shape
    path.write_bytes(b"P6 %s%d\n%d\n255\n" % (comment, width, height) + image.tobytes())


def read_ppm(path):
    magic, size, most, pixels = path.read_bytes().split(b"\n", 3)
    assert (magic, most) == (b"P6", b"255")
    width, height = map(int, size.split())
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((1, 1), {}),
        ((150, 200), {}),
        ((150, 200), {"tile": 48}),
        ((97, 131), {"tile": 40, "halo": 3, "overlap": 7, "batch": 4}),
        ((64, 300), {"tile": 33, "halo": 1, "overlap": 0}),
        ((90, 61), {"tile": 20, "halo": 0, "overlap": 15, "batch": 3}),  # not exact; blended the same way
    ],
)
def test_a_c_program_gives_the_bits_that_python_gives(plain, tmp_path, rng, size, options, scale):
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    write_ppm(tmp_path / "in.ppm", image, b"# a comment\n# another\n ")
    told = [word for name, value in options.items() for word in (f"--{name}", value)]
    run(plain, tmp_path / "in.ppm", tmp_path / "out.ppm", "--scale", scale, *told)
    asked = {"tile": 256, "halo": 1, "overlap": 16, "batch": 1} | options
    names = {"tile_size": "tile", "halo": "halo", "overlap": "overlap", "batch_size": "batch"}
    settled = {name: asked[key] for name, key in names.items()}
    want = restore_tiled(image, blur(scale), phase=1, scale=scale, blend="cosine", boundary="reflect", **settled)
    np.testing.assert_array_equal(read_ppm(tmp_path / "out.ppm"), want)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not a PPM"),
        (b"P5 3 3 255 aaaaaaaaa", "not a PPM"),
        (b"P6 3 -3 255 a", "not a PPM"),
        (b"P6 99999999999999999999 3 255 a", "not a PPM"),
        (b"P6 # 3 3 255", "not a PPM"),
        (b"P6 3 3 65535 a", "8 bits"),
        (b"P6 3 3 255 aaaaaaaa", "too early"),
    ],
)
def test_the_example_refuses_what_it_does_not_understand(plain, tmp_path, content, told):
    (tmp_path / "in.ppm").write_bytes(content)
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # it leaves the rest to the system
    command = [str(plain), str(tmp_path / "in.ppm"), str(tmp_path / "out.ppm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1 and told in done.stderr
    assert not (tmp_path / "out.ppm").exists()


def test_options_that_make_no_plan(plain, tmp_path, rng):
    write_ppm(tmp_path / "in.ppm", rng.integers(0, 256, (20, 20, 3), np.uint8))
    command = [plain, tmp_path / "in.ppm", tmp_path / "out.ppm", "--tile", "8", "--overlap", "8"]
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1 and "overlap must be at least 0 and below tile_size" in done.stderr


@pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler {CXX}")
def test_cpp_programs_can_use_it(installed, tmp_path):
    (tmp_path / "twice.cpp").write_text("""
#include <halotile.h>
#include <cstdio>
#include <vector>

static int twice(void *context, const ht_batch *batch)
{
    ++*static_cast<int *>(context);
    for (int64_t i = 0; i < batch->count * batch->channels * batch->height * batch->width; i++)
        batch->outputs[i] = 2 * batch->windows[i];
    return 0;
}

int main()
{
    std::vector<uint8_t> in(50 * 40, 60), out(50 * 40);
    ht_array image = {in.data(), HT_U8, 1, 50, 40, 0, 40, 1}, output = image;
    output.data = out.data();
    ht_axis_options rows = {50, 16, 2, 4, 1, 1, 1, 0, HT_REFLECT, 0, 0}, columns = rows;
    columns.size = 40;
    ht_plan plan;
    if (ht_plan_init(&plan, &rows, &columns, HT_LINEAR, nullptr) != HT_OK)
        return 1;
    ht_restore_options options = {&plan, ht_values_of(HT_U8), ht_values_of(HT_U8), 3, nullptr};
    int calls = 0;
    ht_position bad;
    if (ht_restore(&image, &output, &options, twice, &calls, &bad) != HT_OK)
        return 2;
    for (uint8_t pixel : out)
        if (pixel != 120)
            return 3;
    std::printf("%d calls, %s\\n", calls, ht_rows_name());
}
""")
    program = tmp_path / "twice"
    run(CXX, "-std=c++11", *WARNINGS, *SANITIZE, tmp_path / "twice.cpp", *flags_of(installed), "-o", program)
    assert "calls" in run(program)


def test_what_is_installed(installed):
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {"lib/libhalotile.a", "include/halotile.h", "lib/pkgconfig/halotile.pc"} <= files
    told = (installed / "lib" / "pkgconfig" / "halotile.pc").read_text()
    assert f"prefix={installed}" in told and "@" not in told


# ---- examples/onnx.c -------------------------------------------------------------------------------------------------


# TBB, of which OpenVINO consists, otherwise loads its parts in a way that sanitizers refuse.
UNDER_SANITIZERS = {"TBB_ENABLE_SANITIZERS": "1", "ASAN_OPTIONS": "detect_leaks=0"}


@pytest.fixture(scope="module")
def through_openvino(installed):
    """The program, and where OpenVINO's libraries are."""
    openvino = pytest.importorskip("openvino")
    home = Path(openvino.__file__).parent
    library = next((home / "libs").glob("libopenvino_c.so*"), None)
    if library is None or not (home / "include" / "openvino" / "c" / "openvino.h").exists():
        pytest.skip("this wheel of OpenVINO has no C headers")
    program = installed / "onnx"
    paths = [f"-isystem{home / 'include'}", library, f"-Wl,-rpath,{home / 'libs'}", f"-Wl,-rpath-link,{home / 'libs'}"]
    example = ROOT / "examples" / "onnx.c"
    run(CC, "-std=c11", "-O1", *WARNINGS, *SANITIZE, example, *paths, *flags_of(installed), "-o", program)
    return program


def enlarging_network(path, scale, channels=3):
    """Two convolutions and a pixel shuffle with random weights, of any height and width, as ONNX."""
    onnx = pytest.importorskip("onnx")
    make, rng = onnx.helper, np.random.default_rng(0)

    def weights(name, *shape):
        return onnx.numpy_helper.from_array(rng.normal(0, 0.2, shape).astype(np.float32), name)

    nodes = [
        make.make_node("Conv", ["x", "a", "b"], ["h"], pads=[1] * 4),
        make.make_node("Relu", ["h"], ["r"]),
        make.make_node("Conv", ["r", "c"], ["s"], pads=[1] * 4),
        make.make_node("DepthToSpace", ["s"], ["y"], blocksize=scale, mode="CRD"),
    ]
    initial = [weights("a", 8, channels, 3, 3), weights("b", 8), weights("c", 3 * scale**2, 8, 3, 3)]
    sides = ("n", channels, "h", "w"), ("n", 3, "H", "W")
    given, made = (
        make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip("xy", sides, strict=True)
    )
    graph = make.make_graph(nodes, "enlarging", [given], [made], initial)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(("scale", "options"), [(1, {"tile": 48}), (2, {"tile": 40, "halo": 3, "overlap": 7})])
def test_an_onnx_model_in_a_c_program_gives_the_bits_that_python_gives(through_openvino, tmp_path, rng, scale, options):
    import openvino

    enlarging_network(tmp_path / "model.onnx", scale)
    image = rng.integers(0, 256, (97, 131, 3), np.uint8)
    write_ppm(tmp_path / "in.ppm", image)
    told = [word for name, value in options.items() for word in (f"--{name}", value)]
    paths = tmp_path / "model.onnx", tmp_path / "in.ppm", tmp_path / "out.ppm"
    run(through_openvino, *paths, "--scale", scale, *told, env=UNDER_SANITIZERS)
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(tmp_path / "model.onnx"), "CPU", settings)
    asked = {"tile": 256, "halo": 16, "overlap": 16} | options
    settled = {"tile_size": asked["tile"], "halo": asked["halo"], "overlap": asked["overlap"]}
    want = restore_tiled(image, lambda windows: compiled(windows)[0], phase=1, scale=scale, blend="average", **settled)
    np.testing.assert_array_equal(read_ppm(tmp_path / "out.ppm"), want)


def test_what_goes_wrong_with_an_onnx_model_is_said(through_openvino, tmp_path, rng):
    write_ppm(tmp_path / "in.ppm", rng.integers(0, 256, (60, 50, 3), np.uint8))
    enlarging_network(tmp_path / "x2.onnx", 2)
    enlarging_network(tmp_path / "grey.onnx", 1, channels=1)
    (tmp_path / "no.onnx").write_bytes(b"no model")
    cases = (
        ("no", "not a model"),
        ("x2", "another size or type: check --scale"),
        ("grey", "does not take such windows"),
    )
    for name, text in cases:
        command = [str(through_openvino), *(str(tmp_path / file) for file in (f"{name}.onnx", "in.ppm", "out.ppm"))]
        env = os.environ | UNDER_SANITIZERS
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 1 and text in done.stderr
        assert not (tmp_path / "out.ppm").exists()
