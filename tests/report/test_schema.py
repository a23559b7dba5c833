"""The published JSON Schema: real reports obey it, it names every field, and it refuses what is broken."""

from __future__ import annotations

import copy
import json

import jsonschema
import pytest
import torch
from made_reports import report_of
from torch import nn

import hadamard_fx
from hadamard_fx.plan import Plan
from hadamard_fx.report import Report
from hadamard_fx.report.schema import report_schema

SCHEMA = report_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


class Recurrent(nn.Module):
    """An LSTM cell by hand, in half precision."""

    def __init__(self):
        super().__init__()
        self.gates = nn.Linear(48, 64).bfloat16()

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 16)
        for step in x.unbind(1):
            i, f, g, o = self.gates(torch.cat([step, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8)), (64, 32), torch.float32, {}),
    "attention": (
        lambda: nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True),
        (4, 16, 32),
        torch.float32,
        {"forward": "hadamard8"},
    ),
    "recurrent": (Recurrent, (32, 3, 32), torch.bfloat16, {"profile": "hdqt"}),
    "no product": (nn.ReLU, (4, 4), torch.float32, {}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_real_reports(name, dynamic):
    make, shape, dtype, options = MODELS[name]
    torch.manual_seed(0)
    explain = hadamard_fx.explain(
        make(), loss=lambda y: y.float().square().mean(), options={"profile": "hot", **options}, graphs=True,
        dynamic=dynamic,
    )  # fmt: skip
    explanation = explain(torch.randn(shape, dtype=dtype, requires_grad=True))
    for report in json.loads(explanation.to_json()):
        VALIDATOR.validate(report)
        closed().validate(report)
        assert Report.from_dict(report).as_dict() == report
    assert explanation.reports


def test_inference():
    model = nn.Linear(8, 8).requires_grad_(False)
    (report,) = json.loads(hadamard_fx.explain(model)(torch.randn(4, 8)).to_json())
    VALIDATOR.validate(report)


def closed():
    """The schema, but refusing fields that it does not name: what is written must be described."""

    def close(part):
        if isinstance(part, dict):
            for value in part.values():
                close(value)
            if part.get("type") == "object" and "properties" in part and "kind" not in part["properties"]:
                part["additionalProperties"] = False
        elif isinstance(part, list):
            for value in part:
                close(value)

    schema = copy.deepcopy(SCHEMA)
    close(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["version"]["const"] == Report.VERSION
    assert SCHEMA["properties"]["schema"]["const"] == Report.SCHEMA


@pytest.mark.parametrize("report", [report_of(), Report(Plan(()))], ids=["full", "empty"])
def test_made_reports(report):
    closed().validate(report.as_dict())


def drop(key):
    return lambda data: data.pop(key)


BREAKS = {
    "no plan": drop("plan"),
    "another version": lambda data: data.update(version=2),
    "seconds as text": lambda data: data["plan"]["decisions"][0]["cost"].update(seconds="1 ms"),
    "negative bytes": lambda data: data.update(saved_bytes_after=-1),
    "no reason": lambda data: data["plan"]["decisions"][0].pop("reason"),
    "unknown role": lambda data: data["plan"]["decisions"][0]["gemm"].update(role="backward"),
    "scheme without kind": lambda data: data["plan"]["decisions"][1]["scheme"].pop("kind"),
    "setting without origin": lambda data: data["plan"]["settings"]["profile"].pop("from"),
    "node with four entries": lambda data: data["graphs"]["after"][0].pop(),
    "pass that does two things": lambda data: data["passes"][0].update(effect="decides and rewrites"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_reports_are_refused(name):
    data = report_of().as_dict()
    VALIDATOR.validate(data)
    BREAKS[name](data)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(data)


def add_fields(part):
    """A field of a later release in every table, but for those whose keys are the user's, and for schemes."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key not in ("versions", "settings", "options", "facts", "scheme", "rates"):
                add_fields(value)
        part["of_a_later_release"] = 3
    elif isinstance(part, list):
        for value in part:
            add_fields(value)


def test_later_fields_are_allowed():
    data = report_of().as_dict()
    later = copy.deepcopy(data)
    add_fields(later)
    VALIDATOR.validate(later)
    assert Report.from_dict(later) == Report.from_dict(data)
