"""Builds everything that a GPU machine without network lacks, and packs it: `prepare.py --python python3.12`.

Needs no GPU and no CUDA toolkit: torch and the compiler come from PyPI into an environment of their own. The archive
holds unpacked packages, gsplat with its CUDA kernels, and gscfd's CPU library; with the checkout itself it is all that
travels. Run it again after an interruption: what is there is kept.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from kit import ARCHIVE, ROOT

PACKAGES = ("diffusers", "ftfy", "wcwidth", "trimesh", "tyro", "docstring_parser", "typeguard", "plyfile")
"""Packages that an image with torch and transformers lacks, besides gsplat; none needs others that it lacks."""
TOOLKIT = "cuda-toolkit[nvcc,nvvm,crt,cccl,cudart]"
THERE = (
    "transformers peft safetensors scipy torchmetrics threadpoolctl imageio pillow pyyaml pytest pytest-timeout "
    "hypothesis tqdm rich jaxtyping packaging jinja2 matplotlib requests"
).split()
"""Packages that such an image has; they are installed here to build and rehearse as there."""
MOST_ARCHIVE = 10 * 10**6
MOST_TREE = 64 * 2**20
"""Bytes of the archive, and of it and the checkout together, that may travel."""
USELESS = ("gsplat/cuda/csrc", "gsplat/cuda/include", "bin", "share")
"""Parts of the packages that are not imported."""


def run(*command: str | Path, **variables: str) -> None:
    """Runs a program; exits if it fails. variables: of its environment, besides this one's."""
    print(f"$ {' '.join(map(str, command))}", flush=True)
    done = subprocess.run([str(word) for word in command], env={**os.environ, **variables})
    if done.returncode:
        sys.exit(f"prepare: {command[0]} ended with exit code {done.returncode}; mend that and run prepare again")


def environment(options: argparse.Namespace, folder: Path) -> Path:
    """Makes the environment of the GPU machine's Python and torch, and returns its Python."""
    python = folder / "venv/bin/python"
    if not python.exists():
        run(options.python, "-m", "venv", folder / "venv")
    gsplat = f"gsplat=={importlib.metadata.version('gsplat')}"
    pip = (python, "-m", "pip", "install", "--quiet", "--progress-bar", "off")
    run(*pip, f"torch=={options.torch}", TOOLKIT, "ninja", "setuptools", *THERE)
    run(*pip, "--no-deps", gsplat)
    return python


BUILD = """
import sys
from pathlib import Path
from gscfd.gpu import toolkit
from gscfd.rasterize import kernels
home = toolkit.set_up()
print("compiler:", home, "nvcc", toolkit.version(home), flush=True)
kernels.build(Path(sys.argv[1]), [sys.argv[2]])
"""
LOAD = """
import sys
from gscfd.rasterize import kernels
import gsplat
kernels.load()
from gsplat.cuda import _backend
assert _backend._C.__file__ == sys.argv[1], _backend._C
print("gsplat's kernels load without a GPU:", _backend._C.__file__)
"""


def gather(options: argparse.Namespace, folder: Path, python: Path) -> Path:
    """Puts all that travels in the archive into one folder, and returns it."""
    site = folder / "site"
    shutil.rmtree(site, ignore_errors=True)
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in (*PACKAGES, "gsplat")]
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", site)
    run(python, *install, *wanted)
    for name in USELESS:
        shutil.rmtree(site / name, ignore_errors=True)
    library = folder / f"gsplat-sm{options.arch.replace('.', '')}"
    own = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    run(python, "-c", BUILD, library, options.arch, **own)
    run("strip", "-o", site / "gsplat/csrc.so", library / "csrc.so")
    run(python, "-c", LOAD, site / "gsplat/csrc.so", **{**own, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"})
    build = folder / "cpu"
    run("cmake", "-S", ROOT, "-B", build, "-DCMAKE_BUILD_TYPE=Release")
    run("cmake", "--build", build, "--parallel")
    (site / "lib").mkdir()
    shutil.copy(ROOT / "gscfd/libgscfd_cpu.so", site / "lib")
    return site


def pack(site: Path, archive: Path) -> None:
    """Writes the archive."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w:xz", preset=9) as file:
        for path in sorted(site.iterdir()):
            file.add(path, arcname=path.name, filter=lambda entry: None if "__pycache__" in entry.name else entry)
    os.replace(partial, archive)


def travels() -> int:
    """Returns the bytes of the checkout that travel: tracked files, and those that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return sum(path.lstat().st_size for path in files if path.is_symlink() or path.exists())


def show(site: Path, archive: Path) -> int:
    """Prints what travels. Returns 1 if it does not fit."""
    for path in sorted(site.iterdir()):
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        print(f"{size / 1e6:8.2f} MB unpacked  {path.name}")
    packed, tree = archive.stat().st_size, travels()
    print(f"{packed / 1e6:8.2f} MB  {archive.relative_to(ROOT)}, of at most {MOST_ARCHIVE / 1e6:.0f}")
    print(f"{(packed + tree) / 2**20:8.2f} MiB with the checkout, of at most {MOST_TREE / 2**20:.0f}")
    if packed > MOST_ARCHIVE or packed + tree > MOST_TREE:
        print("prepare: this does not fit; leave packages out, or files of the checkout untracked", file=sys.stderr)
        return 1
    print(f"on the GPU machine, in the checkout: python3 scripts/gpu/first.py --archive {archive.relative_to(ROOT)}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="python3.12", help="Python of the GPU machine's version (python3.12)")
    parser.add_argument("--torch", default="2.11.0", help="the GPU machine's torch (2.11.0)")
    parser.add_argument("--arch", default="9.0", help="the GPU's compute capability (9.0: H100, H200)")
    options = parser.parse_args()
    begin, folder = time.monotonic(), ARCHIVE.parent
    folder.mkdir(parents=True, exist_ok=True)
    site = gather(options, folder, environment(options, folder))
    pack(site, ARCHIVE)
    print(f"prepared in {(time.monotonic() - begin) / 60:.1f} minutes")
    return show(site, ARCHIVE)


if __name__ == "__main__":
    sys.exit(main())
