"""Benchmarks: each compares at least two ways of doing the same work in one run."""
