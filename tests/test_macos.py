# SPDX-License-Identifier: MIT
"""scripts/check_macos.py: what it makes of lists and symbols; and, where its tools are, that it finds no fault."""

import importlib.util
import subprocess
import sys

import pytest

from scripts import check_macos
from scripts.check_macos import ROOT, VERSIONS, Function, Module, faults_of, functions_of, missing, strangers

ABI = (ROOT / "csrc" / "torch" / "torch_abi.h").read_text()


def test_the_lists_are_read_whole():
    functions = functions_of(ABI)
    lists = ABI[ABI.index("#define HT_TORCH_FUNCTIONS") :]
    assert len(functions) == len({function.name for function in functions}) == lists.count(" X(")
    assert {function.list for function in functions} == set(check_macos.LISTS)
    since = {function.name: function.since for function in functions}
    assert since["torch_library_impl"] is None  # its parameters have parentheses of their own
    assert since["torch_exception_get_what_without_backtrace"] == "2.13"
    assert since["torch_mps_set_arg_bytes"] == "2.14"


def test_a_list_that_is_gone_is_an_error():
    with pytest.raises(ValueError, match="HT_MPS_OPTIONAL"):
        functions_of(ABI.replace("#define HT_MPS_OPTIONAL", "#define HT_MPS"))


def test_what_is_missing_depends_on_the_version():
    functions = [Function("always", "HT_TORCH_FUNCTIONS", None), Function("later", "HT_TORCH_OPTIONAL", "2.13")]
    assert missing(functions, {"always"}, "2.10.0") == []
    assert missing(functions, {"always"}, "2.13.0") == ["later"]
    assert missing(functions, {"always"}, "2.14.1+cpu") == ["later"]
    assert missing(functions, {"later"}, "2.9.1") == ["always"]


@pytest.mark.parametrize("there", [True, False])
def test_the_newest_version_is_checked_where_its_wheel_can_be_had(monkeypatch, tmp_path, capsys, there):
    (tmp_path / f"torch-{check_macos.VERSIONS[-1]}-cp311-cp311-macosx_14_0_arm64.whl").touch()
    if there:
        (tmp_path / f"torch-{check_macos.NEWEST}-cp311-cp311-macosx_14_0_arm64.whl").touch()

    def refused(command, check):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(check_macos.subprocess, "run", refused)
    checked = check_macos.versions_to_be_had(tmp_path)
    assert checked == VERSIONS + [check_macos.NEWEST] * there
    assert ("cannot be had here; not checked" in capsys.readouterr().out) is not there
    assert "2.14.1" in checked and check_macos.wheel_of("2.14.1", tmp_path).is_file()


def test_declarations_are_checked_from_their_version_on():
    functions = functions_of(ABI)
    assert "#define DECLARED_torch_mps_set_arg_bytes(...) \n" in check_macos.declaration_checks(functions, "2.13.0")
    assert "#define DECLARED_torch_mps_set_arg_bytes(...) SAME" in check_macos.declaration_checks(functions, "2.14.0")


def test_symbols_of_python_and_cxx_are_known_all_others_are_not():
    fine = {"PyErr_SetString", "_Py_NoneStruct", "_ZNSt3__15mutex4lockEv", "_Znwm", "__cxa_throw"}
    assert strangers(fine) == []
    strange = {
        "aoti_torch_get_dim",
        "torch_list_size",
        "_ZN2at6detail10empty_cudaE",
        "_ZNK3c1010TensorImpl5sizesEv",
        "_ZNSt3__16vectorIN2at6TensorENS_9allocatorIS2_EEED1Ev",  # libc++'s prefix, a class of torch's
        "PyErr_SetStrin",
        "cblas_sgemm",
    }
    assert strangers(fine | strange) == sorted(strange)


GOOD = {
    "name": "_core",
    "cpu": "ARM64",
    "min_os": check_macos.MIN_OS,
    "libraries": ["/usr/lib/libSystem.B.dylib"],
    "exported": {"PyInit__core"},
    "defined": {"ht_rows_neon"},
    "linked": {"memcpy"},
    "undefined": {"PyErr_SetString"},
}


@pytest.mark.parametrize(
    "changed, fault",
    [
        ({}, None),
        ({"name": "_torch"}, "PyInit__torch is not exported"),
        ({"cpu": "X86_64"}, "built for X86_64"),
        ({"min_os": "15.0"}, "needs macOS 15.0"),
        ({"libraries": ["@rpath/libtorch_cpu.dylib"]}, "linked with @rpath/libtorch_cpu.dylib"),
        ({"exported": {"PyInit__core", "ht_read"}}, "ht_read is exported too"),
        ({"defined": {"main"}}, "has no NEON row kernels"),
        ({"undefined": {"aoti_torch_get_dim"}}, "aoti_torch_get_dim is undefined"),
    ],
)
def test_faults_of_modules(changed, fault):
    assert faults_of(Module(**{**GOOD, **changed})) == ([fault] if fault else [])


@pytest.mark.slow
def test_modules_for_macos_find_what_they_need():
    for tool in ("ziglang", "lief"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"no {tool}")
    for version in VERSIONS:
        try:
            check_macos.wheel_of(version, ROOT / "build" / "wheels")
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            pytest.skip(f"torch's wheel for macOS cannot be had: {error}")
    command = [sys.executable, str(ROOT / "scripts" / "check_macos.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0 and "faults: 0" in done.stdout, done.stdout + done.stderr
