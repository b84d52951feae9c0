"""What an encoder is worth: its sentence vectors, the tasks they are measured on, and the command that does both."""

from .encoding import encode

__all__ = ["encode"]
