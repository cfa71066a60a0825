"""The texture of a mesh: unwrapped by xatlas, painted with the colors of the splat's views."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from gscfd.errors import UserError
from gscfd.export.surface import Views

PADDING = 4
"""Texels between the charts."""
SHARPNESS = 2
"""Power of the cosine between normal and direction of the view that weights its color."""
UNUSUAL = 0.01
"""Weight of a view from an unusual elevation beside a usual one: it decides only where no usual one sees the texel."""
TOLERANCE = 0.03
"""World units by which a texel may lie behind the depth that a view shows."""


def unwrapped(vertices: np.ndarray, triangles: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts a mesh into charts and packs them. Returns the wedges [W], which are indices of vertices, their texture
    coordinates [W, 2] in [0, 1] from the lower left corner, and the triangles [F, 3] of wedges.

    vertices: [V, 3] float32. triangles: [F, 3] uint32. size: about the texture's edge in texels. Raises UserError if
    xatlas is missing.
    """
    xatlas = _xatlas()
    atlas, packing = xatlas.Atlas(), xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = size, PADDING, True
    atlas.add_mesh(vertices, triangles)
    atlas.generate(pack_options=packing)
    wedges, faces, uvs = atlas[0]
    return wedges.astype(np.int64), uvs.astype(np.float32), faces.astype(np.uint32)


def _xatlas() -> Any:
    try:
        import xatlas
    except ImportError as error:
        raise UserError(f"to: a mesh needs xatlas, got {error}; pip install 'gscfd[mesh]'") from None
    return xatlas


def painted(
    corners: np.ndarray, normals: np.ndarray, uvs: np.ndarray, triangles: np.ndarray, views: Views, size: int
) -> np.ndarray:
    """Returns the texture [size, size, 3] uint8, with its first row at the top, v = 1.

    corners, normals, uvs: [W, 3], [W, 3], [W, 2] of the wedges. triangles: [F, 3] of wedges. Colors are means over the
    views that see the texel; texels that no view sees, and those between the charts, have the nearest seen color.
    """
    texels, triangle, weights = covered(uvs * size, triangles, size)
    places, facing = ((values[triangles[triangle]] * weights[..., None]).sum(1) for values in (corners, normals))
    color, weight = seen_colors(places.astype(np.float32), facing.astype(np.float32), views)
    image, seen = np.zeros((size, size, 3)), np.zeros((size, size), bool)
    image.reshape(-1, 3)[texels], seen.reshape(-1)[texels] = color, weight > 0
    if not seen.all() and seen.any():
        nearest = ndimage.distance_transform_edt(~seen, return_distances=False, return_indices=True)
        image = image[tuple(nearest)]
    return np.round(255 * image[::-1]).astype(np.uint8)


def covered(points: np.ndarray, triangles: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the texels [T], as row * size + column, whose centers are in a triangle, the triangle [T] of each, and
    the center's barycentric coordinates [T, 3].

    points: [W, 2] column and row in texels. triangles: [F, 3].
    """
    corners = points[triangles].astype(np.float64)
    low = np.floor(corners.min(1)).astype(int).clip(0, size - 1)
    spans = np.ceil(corners.max(1)).astype(int).clip(1, size) - low
    counts = spans.prod(1)
    triangle = np.repeat(np.arange(len(triangles)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    x = low[triangle, 0] + within % spans[triangle, 0]
    y = low[triangle, 1] + within // spans[triangle, 0]
    a, b, c = (corners[:, i] for i in range(3))
    u, v, w = b - a, c - a, np.column_stack([x, y]) + 0.5 - a[triangle]
    area = cross(u, v)
    area = np.where(area == 0, np.inf, area)[triangle]
    second, third = cross(w, v[triangle]) / area, cross(u[triangle], w) / area
    weights = np.column_stack([1 - second - third, second, third])
    inside = weights.min(1) >= -1e-6
    texels, first = np.unique((y * size + x)[inside], return_index=True)
    return texels, triangle[inside][first], weights[inside][first]


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the cross products [N] of vectors [N, 2] in the plane."""
    return np.asarray(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])


def seen_colors(points: np.ndarray, normals: np.ndarray, views: Views) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean color [P, 3] of surface points over the views that see them, and the sum of the weights [P], 0
    where none does. points, normals: [P, 3] float32."""
    facing = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    total, weight = np.zeros((len(points), 3), np.float32), np.zeros(len(points), np.float32)
    for i in range(len(views)):
        toward = views.position(i) - points
        cosine = (toward * facing).sum(1) / np.linalg.norm(toward, axis=1)
        rows = np.flatnonzero(cosine > 0.1)
        x, y, z = views.projected(i, points[rows])
        pixel = y.astype(np.int32), x.astype(np.int32)
        seen = (views.opacity[i][pixel] > 0.5) & (z < views.depth[i][pixel] + TOLERANCE)
        importance = np.float32(1 if views.usual(i) else UNUSUAL)
        share = np.where(seen, importance * cosine[rows] ** SHARPNESS, np.float32(0))
        total[rows] += share[:, None] * interpolated(views.color[i], x, y)
        weight[rows] += share
    return total / np.maximum(weight, 1e-9)[:, None], weight


def interpolated(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the bilinear colors [P, 3] of an image [S, S, 3] at x and y [P] in pixels, with centers at halves."""
    last = len(image) - 1
    x, y = (x - 0.5).clip(0, last), (y - 0.5).clip(0, last)
    left, top = (a.astype(np.int32).clip(0, last - 1) for a in (x, y))
    u, v = (x - left)[:, None], (y - top)[:, None]
    upper = (1 - u) * image[top, left] + u * image[top, left + 1]
    lower = (1 - u) * image[top + 1, left] + u * image[top + 1, left + 1]
    return np.asarray((1 - v) * upper + v * lower)
