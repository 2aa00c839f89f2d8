"""Measuring: a load generator for any rerank server, and this machine's own rate at a model and workload."""
