"""Dashboard and alerts ask for metrics that the gateway really has, by labels that it really gives them."""

import json
import re

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.deployment import ROOT, Deployment, picture

MONITORING = ROOT / "deploy" / "monitoring"


def expressions() -> list[str]:
    dashboard = json.loads((MONITORING / "grafana" / "dashboards" / "serving.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    return panels + [rule["expr"] for rule in rules]


@pytest.fixture(scope="module")
def samples(tiny: Deployment) -> dict[str, set[str]]:
    """Names of all samples and of their labels, after requests that ended in every way."""
    route = f"{tiny.url}/v1/multimodal/generate"
    files = {"image": picture()}
    httpx.post(route, files=files, data={"prompt": "Hi", "max_tokens": "4", "ignore_eos": "true"}, timeout=60)
    httpx.post(route, json={"prompt": "word " * 5000})
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(route, json={"prompt": "Hi", "params": {"ignore_eos": True}}, timeout=0.3)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{tiny.url}/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("expression", expressions())
def test_every_query_finds_its_metrics(samples: dict[str, set[str]], expression: str) -> None:
    asked = re.findall(r"(multimodal:\w+)(?:\{([^}]*)\})?", expression)
    assert asked
    for name, matchers in asked:
        assert name in samples
        labels = set(re.findall(r"(\w+)\s*[!=]~?=?\s*\"", matchers or ""))
        labels |= set(re.findall(r"by \((\w+)\)", expression)) if len(asked) == 1 else set()
        assert labels <= samples[name]
