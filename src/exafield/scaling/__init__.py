"""Scaling: what a training step takes on a machine that one does not have.

A :class:`Step` says what one rank computes and which gradients come when, a :class:`exafield.machine.Machine` what
messages and computing cost; :func:`simulate` carries out the control planes, groupings and collectives of
:mod:`exafield.reduce` on them in virtual time.
"""

from exafield.scaling.simulation import Outcome, simulate
from exafield.scaling.step import Layer, Step, StepError

__all__ = ["Layer", "Outcome", "Step", "StepError", "simulate"]
