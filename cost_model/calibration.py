"""Calibration: what a few batches showed of every product of a model's layers, as a value and as a file.

Products are known by layer and role, the names of the report, so that it does not matter where a graph begins and ends.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from hadamard_fx.errors import CalibrationError, SchemeError
from hadamard_fx.files import write_whole
from hadamard_fx.plan import Gemm, Role, Scheme

from .error import has_error_model, relative_error
from .statistics import Statistics

__all__ = ["CALIBRATED", "CalibratedProduct", "Calibration", "calibration_of", "weight_extents"]

CALIBRATED = (Role.FORWARD, Role.GRAD_INPUT, Role.GRAD_WEIGHT)
"""The products of a layer: those that a scheme may compute."""


def weight_extents(gemm: Gemm) -> tuple[int, ...]:
    """The sizes of a product that the weight gives it and that no batch changes, sorted."""
    if gemm.role is Role.FORWARD:
        return (gemm.K.hint,)
    if gemm.role is Role.GRAD_INPUT:
        return tuple(sorted((gemm.K.hint, gemm.saved_extent)))
    return tuple(sorted((gemm.M.hint, gemm.N.hint)))


@dataclass(frozen=True)
class CalibratedProduct:
    """What was seen of one product.

    Attributes:
        layer, role: whose product.
        extents: its sizes that no batch changes, sorted.
        statistics: of its operands; None where one of them was zero in every batch: there was nothing to measure.
        measured: scheme, refined for the device -> relative error ‖result − exact‖ / ‖exact‖ over all batches.
    """

    layer: str
    role: Role
    extents: tuple[int, ...]
    statistics: Statistics | None
    measured: tuple[tuple[Scheme, float], ...] = ()

    def error(self, scheme: Scheme) -> float | None:
        """The measured error of a scheme, None where it was not measured."""
        return dict(self.measured).get(scheme)

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "role": str(self.role),
            "extents": list(self.extents),
            "statistics": None if self.statistics is None else self.statistics.to_json(),
            "measured": [{"scheme": scheme.to_json(), "error": error} for scheme, error in self.measured],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        statistics = None if data["statistics"] is None else Statistics.from_json(data["statistics"])
        measured = tuple((Scheme.from_json(entry["scheme"]), float(entry["error"])) for entry in data["measured"])
        return cls(str(data["layer"]), Role(data["role"]), tuple(data["extents"]), statistics, measured)


@dataclass(frozen=True)
class Calibration:
    """The products of one model, as ``hadamard_fx.calibrate`` saw them; ``options={"calibration": …}`` uses it.

    Attributes:
        products: one per layer and role, in the order in which they were first seen.
        batches: how many were run.
        device: for a person, ``"cpu"``.
        versions: of ``"torch"`` and ``"hadamard_fx"``.
    """

    SCHEMA: ClassVar[str] = "hadamard_fx.calibration"
    VERSION: ClassVar[int] = 1

    products: tuple[CalibratedProduct, ...]
    batches: int
    device: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    _table: dict[tuple[str, Role], CalibratedProduct] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        self._table.update({(product.layer, product.role): product for product in self.products})

    def product(self, gemm: Gemm) -> CalibratedProduct | None:
        """What was seen of a product; None where it is none of a layer, or was never seen."""
        return self._table.get((gemm.layer, gemm.role))

    def statistics(self, gemm: Gemm) -> Statistics | None:
        """Of a product's operands, as ``relative_error`` takes them."""
        found = self.product(gemm)
        return None if found is None else found.statistics

    def measured_error(self, scheme: Scheme, gemm: Gemm) -> float | None:
        """The measured error of a product under a scheme, None where it was not measured."""
        found = self.product(gemm)
        return None if found is None else found.error(scheme)

    def error(self, scheme: Scheme, gemm: Gemm) -> float | None:
        """The measured error, else the predicted one; None for a scheme that nobody can predict."""
        measured = self.measured_error(scheme, gemm)
        if measured is not None or not has_error_model(scheme):
            return measured
        return relative_error(scheme, gemm, self.statistics(gemm))

    def check(self, gemms: Iterable[Gemm]) -> None:
        """Refuse a graph of another model.

        Products that the calibration has and the graph has not are no offence: a model may have several graphs.

        Raises:
            CalibrationError: names the layers that differ.
        """
        differing: dict[str, str] = {}
        for gemm in gemms:
            if gemm.role not in CALIBRATED:
                continue
            known, extents = self.product(gemm), weight_extents(gemm)
            if known is None:
                roles = [str(role) for layer, role in self._table if layer == gemm.layer]
                found = f"it saw {', '.join(roles)} only, not {gemm.role}" if roles else "it has no such layer"
                differing.setdefault(gemm.layer, found)
            elif known.extents != extents:
                sizes = [" × ".join(map(str, side)) for side in (known.extents, extents)]
                differing.setdefault(gemm.layer, f"{gemm.role} of {sizes[0]} there, of {sizes[1]} here")
        if differing:
            shown = "; ".join(f"{layer or '(no module)'}: {found}" for layer, found in list(differing.items())[:8])
            more = f"; and {len(differing) - 8} more" if len(differing) > 8 else ""
            raise CalibrationError(
                f"the calibration is of another model, or of this one before it changed: {shown}{more}. "
                "Calibrate this model: hadamard_fx.calibrate(model, batches, loss)"
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.SCHEMA,
            "version": self.VERSION,
            "batches": self.batches,
            "device": self.device,
            "versions": dict(self.versions),
            "products": [product.to_json() for product in self.products],
        }

    def digest(self) -> str:
        """A hash of all that decides; the same in every process."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        content = [product.to_json() for product in self.products]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __hash__(self) -> int:
        return int(self.digest()[:15], 16)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, all of it or nothing.

        Raises:
            CalibrationError: it cannot be written; what was there before is as it was.
        """
        target = Path(path)
        try:
            write_whole(target, json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            raise CalibrationError(
                f"the calibration cannot be written to {target}: {error.strerror or error}; save it elsewhere"
            ) from error
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The calibration that ``save`` wrote.

        Raises:
            CalibrationError: no such file, truncated, not one of ours, of another schema version, or with a scheme that
                nobody has declared.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise CalibrationError(f"cannot read the calibration {path}: {error.strerror or error}") from None
        except ValueError as error:
            raise CalibrationError(
                f"the calibration {path} is truncated, or no JSON: {error}; calibrate again"
            ) from None
        return cls.from_json(data, f"{path}")

    @classmethod
    def from_json(cls, data: Any, where: str = "this JSON") -> Self:
        """The calibration that ``to_json`` wrote; ``where`` is what messages call it.

        Raises:
            CalibrationError: as ``load``.
        """
        if not isinstance(data, dict) or data.get("schema") != cls.SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise CalibrationError(f"{where} is no calibration: schema {found!r} instead of {cls.SCHEMA!r}")
        if data.get("version") != cls.VERSION:
            raise CalibrationError(
                f"the calibration {where} has schema version {data.get('version')!r}, this release reads "
                f"{cls.VERSION}; calibrate again"
            )
        try:
            products = tuple(CalibratedProduct.from_json(entry) for entry in data["products"])
            versions = tuple(sorted((str(key), str(value)) for key, value in data["versions"].items()))
            return cls(products, int(data["batches"]), str(data["device"]), versions)
        except SchemeError as error:
            raise CalibrationError(
                f"the calibration {where}: {error}; import the module that declares the scheme first"
            ) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(
                f"the calibration {where} is damaged: {type(error).__name__}: {error}; calibrate again"
            ) from None


def calibration_of(value: Calibration | str | None) -> Calibration | None:
    """What the option of that name means: itself, or the file that it names.

    Raises:
        CalibrationError: as ``Calibration.load``, or an object that is no calibration.
    """
    if value is None or isinstance(value, Calibration):
        return value
    if not isinstance(value, str):
        raise CalibrationError(f"option 'calibration': {value!r} is no Calibration; hadamard_fx.calibrate returns one")
    return Calibration.load(value)
