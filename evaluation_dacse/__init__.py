"""Measures speech enhancement: metrics, systems, benchmarks, reports and listening tests."""
