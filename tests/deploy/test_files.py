"""What the Dockerfiles, Compose and the chart say is true of the program. No container engine is needed.

The chart is rendered where helm-python-sdk is installed, and its manifests are checked where kubernetes-validate is.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.application import create_app
from app.settings import Settings
from triton_worker.serving.flags import add_worker_flags

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
CHART = ROOT / "deploy" / "helm" / "nemo-multimodal-serving"
PARTS = ["gateway", "worker"]
PROMETHEUS_OPERATOR = "monitoring.coreos.com/v1"


def worker_flags() -> dict[str, Any]:
    """The defaults of the worker's flags under their long names."""
    parser = argparse.ArgumentParser()
    add_worker_flags(parser)
    return {action.dest: action.default for action in parser._actions if action.dest != "help"}


def settings_of(part: str) -> set[str]:
    return set(Settings.model_fields) if part == "gateway" else set(worker_flags())


def variables_of(part: str) -> set[str]:
    return {f"MULTIMODAL_{name.upper()}" for name in settings_of(part)}


def dockerfile(part: str) -> str:
    return (DOCKER / f"{part}.Dockerfile").read_text().replace("\\\n", " ")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return services


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


# -- Dockerfiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_image_runs_a_command_of_ours_as_nobody_in_particular(part: str) -> None:
    final = dockerfile(part).rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)", final, re.M) == ["10001:10001"], "by number: Kubernetes checks runAsNonRoot by it"
    assert f'ENTRYPOINT ["multimodal-{part}"]' in final
    assert f"\nmultimodal-{part} = " in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("part", PARTS)
def test_copied_files_exist_and_are_not_ignored(part: str) -> None:
    allowed = set(re.findall(r"^!(.*)", (ROOT / ".dockerignore").read_text(), re.M))
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile(part), re.M)
    copied = {name for names in copies for name in names.split()}
    assert copied
    assert copied <= allowed
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("part", PARTS)
def test_image_has_what_its_part_needs(part: str) -> None:
    assert f"'.[{part},tracing]'" in dockerfile(part)
    assert f"\n{part} = [" in (ROOT / "pyproject.toml").read_text()
    assert ("torch" in dockerfile(part).partition("FROM")[2].replace("without torch", "")) == (part == "worker")


# -- Compose -----------------------------------------------------------------------------------------------------------


def test_gateway_alone_is_published(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {
        "gateway": ["${GATEWAY_ADDRESS:-0.0.0.0}:${GATEWAY_PORT:-8080}:8080"],
        "grafana": ["${GRAFANA_ADDRESS:-127.0.0.1}:${GRAFANA_PORT:-3000}:3000"],
    }
    assert Settings.model_fields["port"].default == 8080
    networks = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["networks"]
    for name in ("worker-gpu", "worker-cpu"):
        assert all(networks[network]["internal"] for network in services[name]["networks"])


def test_containers_are_confined(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["read_only"] is True
        assert service["tmpfs"] == "/tmp"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"user", "privileged", "cap_add", "network_mode"} & set(service)
        bound = [volume for volume in service.get("volumes", []) if volume["type"] == "bind"]
        assert all(volume["read_only"] for volume in bound)
        assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("service", ["gateway", "worker-gpu", "worker-cpu"])
def test_variables_are_settings(services: dict[str, Any], service: str) -> None:
    environment = services[service]["environment"]
    assert set(environment) <= variables_of(service.partition("-")[0])
    if service != "gateway":
        assert environment["MULTIMODAL_TRITON_GRPC_ADDRESS"] == "0.0.0.0"
        assert services[service]["networks"]["inside"]["aliases"] == ["worker"]


def test_ports_are_the_defaults(services: dict[str, Any]) -> None:
    flags = worker_flags()
    assert services["gateway"]["environment"]["MULTIMODAL_TRITON_GRPC_URL"] == f"worker:{flags['triton_grpc_port']}"
    assert f":{flags['triton_port']}/v2/health/ready" in services["worker-gpu"]["healthcheck"]["test"][-1]
    probe = services["gateway"]["healthcheck"]["test"][-1]
    assert ":8080/health/ready" in probe
    compile(probe, "healthcheck", "exec")


def test_profiles_have_a_gateway_and_one_worker(services: dict[str, Any]) -> None:
    for profile in ("gpu", "cpu"):
        members = {name for name, service in services.items() if profile in service["profiles"]}
        assert members == {"gateway", f"worker-{profile}"}


def test_monitoring_finds_its_files_and_targets(services: dict[str, Any]) -> None:
    members = {name for name, service in services.items() if "monitoring" in service["profiles"]}
    assert members == {"prometheus", "grafana"}
    for name in members:
        assert ":" in services[name]["image"], "a version"
        sources = [volume["source"] for volume in services[name]["volumes"] if volume["type"] == "bind"]
        assert sources
        assert all((ROOT / source).exists() for source in sources)
    monitoring = ROOT / "deploy" / "monitoring"
    scraped = yaml.safe_load((monitoring / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in scraped for config in job["static_configs"] for target in config["targets"]}
    assert targets == {"gateway:8080", f"worker:{worker_flags()['triton_metrics_port']}"}
    provisioned = monitoring / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioned / "datasources" / "prometheus.yml").read_text())["datasources"]
    [dashboards] = yaml.safe_load((provisioned / "dashboards" / "dashboards.yml").read_text())["providers"]
    assert source["url"] == "http://prometheus:9090"
    mounted = {volume["target"]: volume["source"] for volume in services["grafana"]["volumes"]}
    shown = ROOT / mounted[dashboards["options"]["path"]] / "serving.json"
    assert {panel["datasource"]["uid"] for panel in json.loads(shown.read_text())["panels"]} == {source["uid"]}
    assert all("inside" in services[name]["networks"] for name in members | {"gateway"})


# -- chart -------------------------------------------------------------------------------------------------------------


def test_values_follow_their_schema(values: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(values, json.loads((CHART / "values.schema.json").read_text()))


@pytest.mark.parametrize("part", PARTS)
def test_charts_settings_exist(values: dict[str, Any], part: str) -> None:
    assert set(values[part]["settings"]) <= settings_of(part)
    variables = set(re.findall(r"name: (MULTIMODAL_[A-Z_]+)", (CHART / "templates" / f"{part}.yaml").read_text()))
    assert variables
    assert variables <= variables_of(part)


def test_images_have_one_name(services: dict[str, Any], values: dict[str, Any]) -> None:
    for name, service in services.items():
        if "build" not in service:
            continue
        part = name.partition("-")[0]
        assert service["image"] == values[part]["image"]["repository"] == f"multimodal-{part}"
        assert service["build"]["dockerfile"] == f"deploy/docker/{part}.Dockerfile"


def test_probed_paths_exist() -> None:
    paths = set(re.findall(r"path: (/health/\w+)", (CHART / "templates" / "gateway.yaml").read_text()))
    assert paths == {"/health/live", "/health/ready"}
    assert paths <= set(create_app(Settings(_env_file=None)).openapi()["paths"])


CHECKPOINT = {"volume": {"persistentVolumeClaim": {"claimName": "checkpoints", "readOnly": True}}}
MUCH: dict[str, Any] = {
    "gateway": {
        "autoscaling": {"enabled": False},
        "environmentFrom": [{"secretRef": {"name": "keys"}}],
        "settings": {"max_prompt_characters": 1_000_000, "ping_seconds": 2.5},
        "tolerations": [{"operator": "Exists"}],
        "nodeSelector": {"pool": "cpu"},
    },
    "worker": {
        "replicas": 3,
        "checkpoint": {**CHECKPOINT, "subPath": "model"},
        "runtimeClassName": "nvidia",
        "nodeSelector": {"gpu": "h200"},
        "settings": {"debug_mode": True},
    },
    "networkPolicy": {
        "tritonHttpFrom": [{"podSelector": {"matchLabels": {"calls": "triton"}}}],
        "workerEgress": [{"ports": [{"port": 4317}]}],
    },
    "serviceMonitor": {"enabled": True},
}
LITTLE: dict[str, Any] = {"worker": {"checkpoint": CHECKPOINT}, "networkPolicy": {"enabled": False}}


def rendered(values: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """The chart's manifests by kind and name."""
    helm = pytest.importorskip("helm_python", reason="rendering the chart needs helm-python-sdk")
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values=values, name="vlm", namespace="serving")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    manifests = [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}


def container(manifest: dict[str, Any]) -> Any:
    return manifest["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("values", [MUCH, LITTLE])
@pytest.mark.parametrize("version", ["1.25", "1.34"])
def test_manifests_are_kubernetes(values: dict[str, Any], version: str) -> None:
    manifests = rendered(values)
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="checking manifests needs its schemas")
    for manifest in manifests.values():
        if manifest["apiVersion"] != PROMETHEUS_OPERATOR:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("values", [MUCH, LITTLE])
def test_pods_are_confined(values: dict[str, Any]) -> None:
    for part in PARTS:
        manifest = rendered(values)["StatefulSet" if part == "worker" else "Deployment", f"vlm-{part}"]
        pod = manifest["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
        assert container(manifest)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_whole_numbers_stay_whole() -> None:
    environment = container(rendered(MUCH)["Deployment", "vlm-gateway"])["env"]
    told = {variable["name"]: variable["value"] for variable in environment}
    assert told["MULTIMODAL_MAX_PROMPT_CHARACTERS"] == "1000000"
    assert told["MULTIMODAL_PING_SECONDS"] == "2.5"


@pytest.mark.parametrize(("values", "replicas"), [(MUCH, 3), (LITTLE, 1)])
def test_gateways_are_told_each_worker(values: dict[str, Any], replicas: int) -> None:
    manifests = rendered(values)
    environment = container(manifests["Deployment", "vlm-gateway"])["env"]
    (urls,) = [variable["value"] for variable in environment if variable["name"] == "MULTIMODAL_TRITON_GRPC_URL"]
    assert Settings(_env_file=None, triton_grpc_url=urls).triton_grpc_urls == [
        f"vlm-worker-{place}.vlm-worker:8001" for place in range(replicas)
    ]
    pods = manifests["StatefulSet", "vlm-worker"]["spec"]
    assert (pods["replicas"], pods["serviceName"]) == (replicas, "vlm-worker")
    assert manifests["Service", "vlm-worker"]["spec"]["clusterIP"] == "None"
    assert (("PodDisruptionBudget", "vlm-worker") in manifests) == (replicas > 1)


def test_gateway_alone_reaches_triton() -> None:
    policy = rendered({"worker": {"checkpoint": CHECKPOINT}})["NetworkPolicy", "vlm-worker"]["spec"]
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": "grpc"}]
    assert rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "worker.checkpoint.volume is required"),
        ({**LITTLE, "gatewy": {}}, "gatewy"),
        ({**LITTLE, "gateway": {"replicas": 0}}, "replicas"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(Exception, match=complaint):
        rendered(values)
