"""View words: what single-view teachers are told about the camera (DreamFusion's view-dependent prompts)."""

from __future__ import annotations

VIEW_WORDS = ("front view", "side view", "back view", "overhead view")


def view_words(azimuth: float, elevation: float) -> str:
    """ "front view" within 30 degrees of the front, "back view" within 30 of the back, "overhead view" above 60."""
    if elevation > 60:
        return "overhead view"
    azimuth = abs((azimuth + 180.0) % 360.0 - 180.0)
    if azimuth < 30:
        return "front view"
    return "back view" if azimuth > 150 else "side view"


def join_words(prompt: str, words: str) -> str:
    """The prompt followed by view words, as the single-view teachers are trained: "a mug, front view"."""
    return f"{prompt}, {words}"


def with_view(prompt: str, azimuth: float, elevation: float) -> str:
    """The prompt with the view words of a camera in degrees."""
    return join_words(prompt, view_words(azimuth, elevation))
