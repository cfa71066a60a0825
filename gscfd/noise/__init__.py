"""Consistent noise: exactly white in every view, and equal on the same surface."""

from gscfd.noise.field import NoiseField
from gscfd.noise.kinds import fixed, iid, radial, surface, world_map

__all__ = ["NoiseField", "fixed", "iid", "radial", "surface", "world_map"]
