# SPDX-License-Identifier: MIT
"""What is published: the source archive, metadata, the recipe, and what people are asked for in issues."""

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from email.parser import HeaderParser
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NOT_PUBLISHED = (".ci/", ".github/", ".gitignore")


@pytest.fixture(scope="module")
def files():
    """Names of all files of the repository."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a repository")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    return [name for name in listed.stdout.decode().splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def archive(files, tmp_path_factory):
    """The source archive, made from a copy."""
    pytest.importorskip("setuptools")
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(out)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (made,) = out.iterdir()
    with tarfile.open(made) as tar:
        top = tar.getnames()[0].partition("/")[0]
        tar.extractall(out, filter="data")
    return out / top


def test_the_source_archive_has_all_that_its_tests_need(files, archive):
    published = {name for name in files if not name.startswith(NOT_PUBLISHED)}
    missing = {name for name in published if not (archive / name).is_file()}
    assert missing == set()


def test_metadata(archive):
    metadata = HeaderParser().parsestr((archive / "PKG-INFO").read_text())
    assert metadata["Name"] == "halotile" and metadata["License-Expression"] == "MIT"
    assert metadata["Author"] and len(metadata.get_all("Project-URL")) >= 3
    text = metadata.get_payload()
    targets = LINK.findall(text)
    assert targets and all(target.startswith(("https://", "#")) for target in targets)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_have_targets(page):
    for target in LINK.findall((ROOT / page).read_text()):
        if not target.startswith(("http", "#")):
            assert (ROOT / target.partition("#")[0]).exists(), target


def test_the_recipe_and_the_citation_are_of_this_version():
    recipe = yaml.safe_load((ROOT / "packaging" / "recipe.yaml").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert recipe["context"]["version"] == citation["version"] == PROJECT["version"]
    assert citation["cff-version"] == "1.2.0" and citation["repository-code"] == PROJECT["urls"]["Homepage"]
    assert recipe["about"]["repository"] == PROJECT["urls"]["Homepage"]
    needed = {one.partition(" ")[0]: one.partition(" ")[2] for one in recipe["requirements"]["run"]}
    assert PROJECT["dependencies"] == [f"numpy{needed['numpy']}"]


def test_where_the_weights_come_from():
    weights = ROOT / "python" / "halotile" / "weights"
    assert (
        hashlib.sha256((weights / "restorer.safetensors").read_bytes()).hexdigest()
        in (weights / "README.md").read_text()
    )


@pytest.mark.parametrize("name", ["bug", "mac", "picture"])
def test_issue_forms(name):
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    if not folder.exists():
        pytest.skip("not a repository")
    form = yaml.safe_load((folder / f"{name}.yml").read_text())
    assert form["name"] and form["description"]
    asked = {one["id"] for one in form["body"] if one.get("validations", {}).get("required")}
    assert len(asked) >= 2 and all(one["attributes"]["label"] for one in form["body"])


def test_workflows_can_be_read():
    folder = ROOT / ".github" / "workflows"
    if not folder.exists():
        pytest.skip("not a repository")
    for path in folder.iterdir():
        jobs = yaml.safe_load(path.read_text())["jobs"]
        assert all(job["runs-on"] and job["steps"] for job in jobs.values())
        needed = {
            one
            for job in jobs.values()
            for one in ([job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", []))
        }
        assert needed <= jobs.keys()
