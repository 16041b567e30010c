"""What is published: an sdist that a wheel can be made from, a wheel that holds every module, and a client that runs
with nothing but what the wheel asks for."""

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from ladle.merging.exceptions import FamilyError
from ladle.merging.family import place

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("package", "kernels", "merging", "guidance", "server", "clients", "recipes", "benchmarks")
# What a module of a folder needs beside it when it is installed, by ending.
DATA = {
    "recipes/configs": "*",
    "recipes/prompts": "*",
    "server/playground": (".html", ".js", ".css", ".svg"),
}


def run(*command: object, **options: object) -> str:
    outcome = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return str(outcome.stdout)


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of this commit."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist of this commit and a wheel made from that sdist."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source, cwd=target)
    return target


def published(tracked: list[str]) -> set[str]:
    """The tracked files that must be in a wheel, under the names that they have there."""
    found = set()
    for name in tracked:
        room, _, rest = name.partition("/")
        data = any(
            name.startswith(f"{folder}/") and (endings == "*" or name.endswith(endings))
            for folder, endings in DATA.items()
        )
        if room in ROOMS and (name.endswith((".py", "py.typed")) or data):
            found.add(f"ladle/{rest}" if room == "package" else f"ladle/{name}")
    return found


def test_the_wheel_holds_every_module_and_nothing_else(built: Path, tracked: list[str]) -> None:
    (wheel,) = built.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    about = {name for name in inside if ".dist-info/" in name}
    assert inside - about == published(tracked)
    assert any(name.endswith("licenses/LICENSE") for name in about)
    assert wheel.stat().st_size < 3 << 20, "a client is to stay small"


def test_the_built_in_families_are_a_wheel_of_their_own(tracked: list[str], tmp_path: Path) -> None:
    source, target = tmp_path / "families", tmp_path / "dist"
    for name in tracked:
        if name.startswith("families/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source, cwd=tmp_path)
    (wheel,) = target.glob("ladle_families-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/") and ".dist-info/" not in name}
        (entries,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        stated = archive.read(entries).decode()
    data = {name for name in tracked if name.startswith(("families/demo/", "families/__init__"))}
    assert inside == {name.replace("families/", "ladle_families/", 1) for name in data}
    assert stated.split() == ["[ladle.families]", "demo", "=", "ladle_families"]
    assert wheel.stat().st_size < 30 << 20, "the built-in family is to stay small"
    assert (ROOT / "families" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_families_of_other_distributions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, names in (("first_families", ("soup", "stew")), ("second_families", ("stew",))):
        about = tmp_path / f"{package}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (about / "entry_points.txt").write_text("[ladle.families]\n" + "".join(f"{n} = {package}\n" for n in names))
        for name in names:
            (tmp_path / package / name).mkdir(parents=True)
            (tmp_path / package / name / "family.toml").write_text("")
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    place._manifests.cache_clear()
    try:
        assert place.find_manifest("soup") == tmp_path / "first_families" / "soup" / "family.toml"
        assert {"demo", "soup", "stew"} <= set(place.installed_families())
        with pytest.raises(FamilyError, match="several distributions"):
            place.find_manifest("stew")
        with pytest.raises(FamilyError, match="did you mean 'soup'.*installed: demo, soup, stew"):
            place.find_manifest("soop")
        monkeypatch.setattr(place, "entry_points", lambda group: [])
        place._manifests.cache_clear()
        with pytest.raises(FamilyError, match="pip install ladle-families"):
            place.find_manifest("demo")
    finally:
        place._manifests.cache_clear()


def test_the_sdist_holds_what_it_is_built_with(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "constraints.txt", "CHANGELOG.md", "MANIFEST.in"} <= names
    assert not any(name.startswith(("tests", ".")) for name in names if name)


def test_the_client_runs_with_what_the_wheel_asks_for(built: Path, tmp_path: Path) -> None:
    """In an environment with nothing else in it."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path, with_pip=False)
    python = tmp_path / "bin" / "python"
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check",
        "--constraint", ROOT / "constraints.txt", wheel,
    )  # fmt: skip
    code = "from ladle.clients import AsyncClient, Client; Client().close(); import ladle; print(ladle.__version__)"
    # -I: neither the working directory nor the environment adds modules.
    said = run(python, "-I", "-c", code, cwd=tmp_path)
    assert wheel.name.startswith(f"ladle-{said.strip()}-")
    command = subprocess.run([tmp_path / "bin" / "ladle"], capture_output=True, text=True, check=False)
    assert command.returncode == 1 and "ladle[cli]" in command.stderr
