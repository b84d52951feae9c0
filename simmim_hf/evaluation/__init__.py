"""Evaluation of an encoder: its sentence vectors, the tasks to measure them on, and the command for both."""

from .encoding import encode

__all__ = ["encode"]
