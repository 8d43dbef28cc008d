"""Solvers of the program, and the scales that they see."""

from .ipopt import (
    Ipopt as Ipopt,
    linear_solvers as linear_solvers,
)
