"""Measurements: metrics of runs, statistics over runs, and the papers' claims."""
