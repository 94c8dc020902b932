"""Experiments: pipelines, their specifications, sweeps over them and the store of their results."""
