"""Measuring: figures of runs, statistics over runs, the papers' claims."""
