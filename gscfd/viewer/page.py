"""The document of the page: viser's client with a title, gscfd's script, and one fault of its splats mended."""

from __future__ import annotations

import html
from functools import lru_cache
from importlib import resources
from pathlib import Path

import viser

MENDED = {
    # Two coordinates per corner of every Gaussian: three.js reads a third one that is not there, and says that the
    # radius of the splat is NaN. That of the corners would be wrong, too: a splat elsewhere would be out of view.
    (corners := "i.setAttribute(`position`,new Hr(new Float32Array([-2,-2,2,-2,2,2,-2,2]),2))"): (
        f"{corners},i.boundingSphere={{center:{{x:0,y:0,z:0}},radius:1/0}}"
    ),
}
"""Replacements in the code of viser's client, which the document unpacks in the browser."""
UNPACKED = "const code=td.decode(heap.subarray(up+ss,up+sz));"
"""Statement of viser's document that has unpacked the client's code."""
DESCRIPTION = "Text to 3D Gaussian splats by Consistent Flow Distillation"


@lru_cache
def document(title: str) -> bytes:
    """Returns the HTML document. title: of the browser's tab."""
    text = (Path(viser.__file__).parent / "client" / "build" / "index.html").read_text(encoding="utf-8")
    mends = "".join(f".replace({old!r},{new!r})" for old, new in MENDED.items())
    text = text.replace(UNPACKED, UNPACKED.replace(";", f"{mends};"))
    text = text.replace("<title>Viser</title>", f"<title>{html.escape(title)}</title>")
    text = text.replace('content="Viser client"', f'content="{DESCRIPTION}"')
    script = (resources.files("gscfd.viewer") / "page.js").read_text(encoding="utf-8")
    style = (resources.files("gscfd.viewer") / "page.css").read_text(encoding="utf-8")
    head, body = text.split("</head>", 1)
    return f"{head}<style>{style}</style><script>{script}</script></head>{body}".encode()
