import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from small_net import Net, batches, square

import hadamard_fx
from hadamard_fx import Calibration


@pytest.fixture(scope="session")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="session")
def calibration(net: Net) -> Calibration:
    return hadamard_fx.calibrate(net, batches(), square)
