"""Kubernetes manifests: valid by Kubernetes' own schemas, and asking of a server what it understands."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from fake_engine import FakeEngine, fake_state

from ladle.merging.family.family import Family
from ladle.server.app import build_app
from ladle.server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/kubernetes"
VERSION = "1.33"
OWN = [
    pytest.param(document, id=f"{document['kind']}-{document['metadata']['name']}")
    for file in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
    if document["apiVersion"] != "ray.io/v1"  # not Kubernetes' own kind
]


@pytest.mark.parametrize("document", OWN)
def test_manifests_are_valid(document: dict[str, Any]) -> None:
    assert kubernetes_validate.validate(document, VERSION, strict=True) == VERSION
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "surprise": 1}, VERSION, strict=True)


def deployment() -> dict[str, Any]:
    (found,) = (param.values[0] for param in OWN if param.values[0]["kind"] == "Deployment")  # type: ignore[index]
    return found["spec"]["template"]["spec"]  # type: ignore[no-any-return, index, call-overload]


def test_the_server_understands_what_it_is_told() -> None:
    (container,) = deployment()["containers"]
    command, family, *rest = container["args"]
    assert (command, family) == ("serve", "demo")
    options, place = {}, 0
    while place < len(rest):
        name = rest[place].removeprefix("--").replace("-", "_")
        flag = place + 1 == len(rest) or rest[place + 1].startswith("--")
        options[name] = True if flag else rest[place + 1]
        place += 1 if flag else 2
    assert set(options) <= set(ServerSettings.model_fields)
    settings = ServerSettings(**options)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert str(settings.api_key_file).rpartition("/")[0] in mounts
    waits = 5 + settings.drain_seconds + 5
    assert deployment()["terminationGracePeriodSeconds"] > waits, "running requests may finish"


def test_a_server_that_dies_is_started_again() -> None:
    assert deployment()["restartPolicy"] == "Always"
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    assert compose["services"]["ladle"]["restart"] in ("always", "unless-stopped")
    assert deployment()["shareProcessNamespace"], "as process 1 it would miss the SIGTERM of its first seconds"


def test_probes_ask_what_there_is(family: Family) -> None:
    (container,) = deployment()["containers"]
    paths = build_app(fake_state(family, FakeEngine())).openapi()["paths"]
    (port,) = container["ports"]
    assert port["containerPort"] == ServerSettings().port
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]["httpGet"]
        assert probe["port"] == port["name"] and "get" in paths[probe["path"]]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health", "a server that drains is not to be killed"


def ray_service() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The manifest of KubeRay, and the pods in it."""
    document = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())
    cluster = document["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return document, [group["template"]["spec"] for group in groups]


def test_pods_may_do_little() -> None:
    for spec in (deployment(), *ray_service()[1]):
        assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
        for container in spec["containers"]:
            inside = container["securityContext"]
            assert inside["capabilities"] == {"drop": ["ALL"]} and not inside["allowPrivilegeEscalation"]
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in deployment()["containers"])


def test_the_ray_service_runs_what_there_is() -> None:
    """Its pods are Kubernetes' own kind; the rest was compared by hand with what KubeRay defines."""
    document, pods = ray_service()
    for spec in pods:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        assert kubernetes_validate.validate(pod, VERSION, strict=True) == VERSION
    version = document["spec"]["rayClusterConfig"]["rayVersion"]
    assert f"ray=={version}\n" in (ROOT / "constraints.txt").read_text()
    serve = yaml.safe_load(document["spec"]["serveConfigV2"])
    (application,) = serve["applications"]
    module, _, function = application["import_path"].partition(":")
    source = (ROOT / Path(*module.split(".")[1:])).with_suffix(".py").read_text()
    assert f"\ndef {function}(" in source
    options = {name: value for name, value in application["args"].items() if name != "fronts"}
    assert set(options) <= set(ServerSettings.model_fields)
    settings = ServerSettings(**options)
    (workers,) = document["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert workers["maxReplicas"] == settings.max_replicas, "a replica a worker"
