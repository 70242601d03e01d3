"""Reads an OpenMetrics exposition from standard input by the strict parser of Prometheus' own Python client; says what it has."""

import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

families = list(text_string_to_metric_families(sys.stdin.read()))
sys.stdout.write(f"{len(families)} metrics, {sum(len(family.samples) for family in families)} samples\n")
