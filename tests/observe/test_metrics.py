"""Each node has its own registry, and what it renders is valid Prometheus text."""

from prometheus_client.parser import text_string_to_metric_families

from meshnode.observe.metrics import Metrics


def test_two_nodes_in_one_process_count_apart():
    first, second = Metrics(), Metrics()
    first.inference_prompt_tokens_total.inc(5)
    assert first.registry.get_sample_value("meshnode_inference_prompt_tokens_total") == 5
    assert second.registry.get_sample_value("meshnode_inference_prompt_tokens_total") == 0


def test_the_exposition_parses_and_every_metric_has_help_and_our_prefix():
    metrics = Metrics()
    metrics.api_requests_total.labels(route="/v1/models", status="200").inc()
    metrics.inference_time_to_first_token_seconds.observe(0.3)
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert len(families) >= 16
    for family in families:
        assert family.name.startswith("meshnode_")
        assert family.documentation
    (requests,) = [family for family in families if family.name == "meshnode_api_requests"]
    assert [s.value for s in requests.samples if s.name.endswith("_total")] == [1]


def test_every_attribute_is_named_as_its_metric():
    metrics = Metrics()
    exposed = {family.name for family in metrics.registry.collect()}
    attributes = {name for name in vars(metrics) if name != "registry"}
    assert {f"meshnode_{name.removesuffix('_total')}" for name in attributes} == exposed
