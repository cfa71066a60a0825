"""Teachers: diffusion models that say how a picture should change to fit the prompt."""

from gscfd.teachers.base import Prompt, Teacher
from gscfd.teachers.load import load_teacher

__all__ = ["Prompt", "Teacher", "load_teacher"]
