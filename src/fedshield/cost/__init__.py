"""What a run will cost, before it runs: bytes, memory and time, without the weights."""

from fedshield.cost.estimate import Cost, Outlook, estimate, look_ahead
from fedshield.cost.messages import Bytes, DryRun

__all__ = ["Bytes", "Cost", "DryRun", "Outlook", "estimate", "look_ahead"]
