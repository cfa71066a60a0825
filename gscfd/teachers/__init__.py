"""Teachers: diffusion models that predict how an image should change to fit the prompt."""

from gscfd.teachers.base import Prompt, Teacher
from gscfd.teachers.load import load_teacher

__all__ = ["Prompt", "Teacher", "load_teacher"]
