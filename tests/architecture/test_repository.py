"""Rules about the files themselves: sizes, licence, what must not be committed."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 400  # lines; more means that a file holds more than one noun


def committed() -> list[Path]:
    """Files that git knows; all files, where this is no checkout."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_no_module_is_too_long():
    lengths = {path: len(path.read_text().splitlines()) for path in committed() if path.suffix == ".py"}
    long = [f"{path.relative_to(ROOT)}: {length} lines" for path, length in lengths.items() if length > LONGEST]
    assert lengths
    assert not long, f"more than {LONGEST} lines:\n" + "\n".join(long)


def test_nothing_decides_by_the_words_of_a_message():
    """Words change, codes do not. What libraries say in words alone is read in one place each, named here."""
    foreign = {"server/tools/schemas.py"}
    words = re.compile(
        r"str\((error|exception|failure)\)\.(starts|ends)with|[\"'] in str\((error|exception|failure)\)"
        r"|\b(message|reason|warning|error|detail)\.(startswith|endswith|removeprefix)\("
        r"|[\"'] (not )?in (error|reason|warning)\b"
    )
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in committed()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] not in ("tests", "tools", "benchmarks", "studies")
        for line in path.read_text().splitlines()
        if words.search(line) and str(path.relative_to(ROOT)) not in foreign
    }
    assert not found, "\n".join(sorted(found))


def test_the_licence_is_there():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"


def test_no_weights_that_could_run_code_are_committed():
    assert not [path for path in committed() if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


def test_constraints_are_exact_and_cover_the_dependencies():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    chosen = ("cli", "server", "train", "dev", "conformance", "otel", "ray", "docs", "coverage")
    wanted = [*project["dependencies"], *(entry for extra in chosen for entry in extras[extra])]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;, ]", requirement)[0]).lower() for requirement in wanted}
    assert names - {"ladle", "ladle-families"} <= pinned, names - pinned


def test_every_link_of_the_documents_leads_somewhere():
    broken = []
    for document in (path for path in committed() if path.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            if not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert not broken, "\n".join(broken)
