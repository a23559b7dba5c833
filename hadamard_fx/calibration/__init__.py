"""``hadamard_fx.calibrate``: run the exact model on a few batches and record what the error model and LQS need.

The batches run through the same analysis as a compilation: dynamo's graph, AOTAutograd's joint graph, ``FindGemms``.
Then the partitioned halves are interpreted node by node, and each product of a layer is looked at when it is computed.
The names are therefore the report's, whatever autocast, tied weights, frozen layers or checkpointing make of the graph,
and no activation lives longer than its own graph keeps it.
"""

from .calibrate import calibrate
from .recalibration import Recalibration

__all__ = ["Recalibration", "calibrate"]
