"""Running sums over the batches, of which the statistics and the measured errors of one product are made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hadamard_fx.cost_model.calibration import CalibratedProduct, weight_extents
from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.statistics import RANK_ORDER, RANKS, Statistics
from hadamard_fx.errors import CalibrationError
from hadamard_fx.kernels.quantize_clipped import largest_order
from hadamard_fx.kernels.walsh import block_transform
from hadamard_fx.passes.lqs import ORDERS, measured_schemes
from hadamard_fx.passes.rule import rule_of
from hadamard_fx.passes.single_product import single_product
from hadamard_fx.plan import Gemm, Role, Scheme

from .operand_sums import OperandSums

__all__ = ["ProductSums"]

OVERFLOWN = 1e6
"""Relative error of a scheme whose result is not finite."""

Product = Callable[[Tensor, Tensor], Tensor]


class ProductSums:
    """Of one product of one layer.

    Args:
        gemm: as it was first found.
        profile: of the device, which refines the schemes.
    """

    def __init__(self, gemm: Gemm, profile: DeviceProfile) -> None:
        self.gemm = gemm
        self._profile = profile
        self._left, self._right = OperandSums(), OperandSums()
        self._energy = self._independent = 0.0
        self._dropped = torch.zeros(len(RANKS), dtype=torch.float64)
        self._errors: dict[Scheme, list[float]] = {}
        self._products: dict[tuple[Scheme, torch.Size, torch.Size], Product] = {}

    def add(self, gemm: Gemm, left: Tensor, right: Tensor) -> None:
        """Look at the product of one batch: [M, K] and [K, N], in the dtype of the model.

        Raises:
            CalibrationError: an operand holds a NaN or an infinity.
        """
        if 0 in (*left.shape, *right.shape):
            return
        rows, columns = left.float(), right.float().t()
        exact = rows @ columns.t()
        energy = float(exact.double().square().sum())
        if not energy < float("inf"):
            raise CalibrationError(
                f"the {gemm.role} of layer {gemm.layer!r} is not finite ({gemm.source or gemm.node}): calibrate with "
                "batches that train, and with a loss scale that does not overflow"
            )
        if energy == 0:
            return
        schemes = self._schemes(gemm)
        weighs = self._operands(gemm, rows, columns, schemes)
        self._energy += energy
        self._independent += weighs / left.shape[1]
        if gemm.role is Role.GRAD_WEIGHT and left.shape[1] >= RANK_ORDER:
            self._dropped += _dropped(rows, columns)
        for scheme in schemes:
            result = self._product(scheme, gemm, left, right)(left, right)
            error = float((result.float() - exact).double().square().sum())
            sums = self._errors.setdefault(scheme, [0.0, 0.0])
            sums[0] += error
            sums[1] += energy

    def _schemes(self, gemm: Gemm) -> tuple[Scheme, ...]:
        found = dict.fromkeys(rule_of(s).refine(s, gemm, self._profile) for s in measured_schemes(gemm.role))
        return tuple(scheme for scheme in found if not rule_of(scheme).illegal(scheme, gemm))

    def _operands(self, gemm: Gemm, rows: Tensor, columns: Tensor, schemes: tuple[Scheme, ...]) -> float:
        """Both operands' sums; returns ‖left‖² ‖right‖²."""
        orders = {1, RANK_ORDER, *(getattr(scheme, "order", None) or 1 for scheme in schemes)}
        if gemm.role is Role.GRAD_INPUT:
            orders |= {*ORDERS}
        if gemm.role is not Role.FORWARD:
            orders |= {largest_order(rows.shape[1])}
        groups = {getattr(scheme, "group", None) or 0 for scheme in schemes} - {0}
        ranked = gemm.role is Role.GRAD_WEIGHT
        energies = [
            sums.add(lines, orders, groups, ranked=ranked)
            for sums, lines in ((self._left, rows), (self._right, columns))
        ]
        return energies[0] * energies[1]

    def _product(self, scheme: Scheme, gemm: Gemm, left: Tensor, right: Tensor) -> Product:
        key = (scheme, left.shape, right.shape)
        if key not in self._products:
            self._products[key] = single_product(scheme, gemm, left, right)
        return self._products[key]

    def product(self) -> CalibratedProduct:
        """What was seen so far."""
        gemm = self.gemm
        if self._energy == 0:
            return CalibratedProduct(gemm.layer, gemm.role, weight_extents(gemm), None)
        dropped = tuple(float(f"{float(share):.6g}") for share in self._dropped / self._energy)
        statistics = Statistics(
            self._left.operand(),
            self._right.operand(),
            float(f"{self._energy / self._independent:.6g}"),
            dropped if bool(self._dropped.any()) else (),
        )
        measured = ((scheme, (error / energy) ** 0.5) for scheme, (error, energy) in self._errors.items())
        # A result that overflowed is no number; JSON has no word for it, and no choice wants it.
        finite = ((scheme, error if error < OVERFLOWN else OVERFLOWN) for scheme, error in measured)
        errors = tuple((scheme, float(f"{error:.6g}")) for scheme, error in finite)
        return CalibratedProduct(gemm.layer, gemm.role, weight_extents(gemm), statistics, errors)


def _dropped(rows: Tensor, columns: Tensor) -> Tensor:
    """‖out − out of the ``rank`` lowest sequencies‖², for every rank of ``RANKS``: float64."""
    left, right = (
        block_transform(side, RANK_ORDER, RANK_ORDER).view(len(side), -1, RANK_ORDER) for side in (rows, columns)
    )
    rest = torch.zeros(len(rows), len(columns), device=rows.device)
    found = [0.0] * len(RANKS)
    for rank in reversed(RANKS[:-1]):
        rest = rest + left[:, :, rank] @ right[:, :, rank].t()
        found[rank - RANKS[0]] = float(rest.double().square().sum()) / RANK_ORDER**2
    return torch.tensor(found, dtype=torch.float64)
