"""Binary glTF 2.0: splats with the KHR_gaussian_splatting extension, and textured triangles."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from gscfd.export.mesh import Mesh, texture_png
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians
from gscfd.harmonics import SH_C0
from gscfd.pictures import linear

POINTS, TRIANGLES = 0, 4
COMPONENTS = {"float32": 5126, "uint16": 5123, "uint32": 5125}
SHAPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP = 9729, 9987, 33071
ATTRIBUTES, INDICES = 34962, 34963
SPLAT = "KHR_gaussian_splatting"


def write_splat_glb(gaussians: Gaussians, path: str | Path) -> None:
    """Writes all parameters as float32 (the ratified KHR_gaussian_splatting), plus COLOR_0 for programs that only
    support points: linear light, as glTF has it, in 16 bits, since 8 are too few for dark colors.

    The Gaussians must be in glTF's axes: y up, front +z.
    """
    values = {name: value.cpu().numpy() for name, value in gaussians.tensors().items()}
    opacity = expit(values["opacities"])
    light = linear((SH_C0 * values["sh0"][:, 0].astype(np.float64) + 0.5).clip(0, 1))
    attributes = {
        "POSITION": values["means"],
        "COLOR_0": np.round(65535 * np.column_stack([light, opacity])).astype(np.uint16),
        f"{SPLAT}:ROTATION": np.roll(values["quats"] / np.linalg.norm(values["quats"], axis=1, keepdims=True), -1, 1),
        f"{SPLAT}:SCALE": np.exp(values["scales"]),
        f"{SPLAT}:OPACITY": opacity,
        f"{SPLAT}:SH_DEGREE_0_COEF_0": values["sh0"][:, 0],
    }
    for degree in range(1, gaussians.sh_degree + 1):
        for i in range(2 * degree + 1):
            attributes[f"{SPLAT}:SH_DEGREE_{degree}_COEF_{i}"] = values["shN"][:, degree**2 - 1 + i]
    kind = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    _write(path, attributes, {"mode": POINTS, "extensions": {SPLAT: kind}}, {"extensionsUsed": [SPLAT]})


def write_mesh_glb(mesh: Mesh, path: str | Path) -> None:
    """Writes triangles with their texture, unlit: the light is painted in it. A vertex on a seam is written once for
    each of its wedges."""
    unlit = "KHR_materials_unlit"
    surface = {"baseColorTexture": {"index": 0}, "metallicFactor": 0, "roughnessFactor": 1}
    arrays = {
        "POSITION": mesh.vertices[mesh.wedges],
        "NORMAL": mesh.normals[mesh.wedges],
        "TEXCOORD_0": (np.array([0, 1], np.float32) + np.array([1, -1], np.float32) * mesh.uvs),
        "indices": mesh.faces.astype(np.uint32).ravel(),
    }
    extra = {
        "extensionsUsed": [unlit],
        "materials": [{"extensions": {unlit: {}}, "pbrMetallicRoughness": surface}],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR, "wrapS": CLAMP, "wrapT": CLAMP}],
    }
    _write(path, arrays, {"mode": TRIANGLES, "material": 0}, extra, texture_png(mesh))


def _write(
    path: str | Path,
    arrays: dict[str, np.ndarray],
    primitive: dict[str, Any],
    extra: dict[str, Any],
    png: bytes | None = None,
) -> None:
    """Writes a scene with one primitive. `arrays` become its attributes by name; "indices" becomes its indices. png:
    the only image."""
    blob, names = bytearray(), dict[str, int]()
    views, accessors = list[dict[str, Any]](), list[dict[str, Any]]()
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        target = INDICES if name == "indices" else ATTRIBUTES
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data), "target": target})
        names[name] = len(accessors)
        accessors.append(_accessor(array, len(accessors), bounds=name == "POSITION"))
        blob += data + bytes(-len(data) % 4)
    if png is not None:
        extra = {**extra, "images": [{"bufferView": len(views), "mimeType": "image/png"}]}
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(png)})
        blob += png + bytes(-len(png) % 4)
    if "indices" in names:
        primitive = {**primitive, "indices": names.pop("indices")}
    gltf = {
        "asset": {"version": "2.0", "generator": "gscfd"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": names, **primitive}]}],
        "buffers": [{"byteLength": len(blob)}],
        "bufferViews": views,
        "accessors": accessors,
        **extra,
    }
    text = json.dumps(gltf).encode()
    text += b" " * (-len(text) % 4)
    with atomic_write(path) as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(blob)))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", len(blob), b"BIN\0") + blob)


def _accessor(array: np.ndarray, view: int, bounds: bool) -> dict[str, Any]:
    kind = {"componentType": COMPONENTS[array.dtype.name], "type": SHAPES[array.shape[1] if array.ndim > 1 else 1]}
    accessor = {"bufferView": view, "count": len(array), **kind}
    if array.dtype == np.uint16:
        accessor["normalized"] = True
    if bounds:
        accessor |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
    return accessor
