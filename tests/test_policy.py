"""Policy: precedence, origins, and a clear answer to every bad setting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hadamard_fx.errors import OptionError, OverrideError, SchemeError
from hadamard_fx.plan import Role
from hadamard_fx.policy import DEFAULTS, PROFILES, Policy, Profile, register_profile
from hadamard_fx.scheme import Exact, Hadamard, LowRank


def resolve(options=None, *, environ=None, directory=None) -> Policy:
    return Policy.resolve(options, environ=environ or {}, directory=directory or Path(os.sep))


def origin(policy: Policy, key: str) -> str:
    return dict(policy.settings)[key][1]


def test_defaults():
    policy = resolve()
    assert policy.profile.name == "auto"
    assert policy.profile.priced
    assert [key for key, _ in policy.settings] == list(DEFAULTS)
    assert {where for _, (_, where) in policy.settings} == {"default"}
    assert policy.inductor == {}


@pytest.mark.parametrize("role", [Role.FORWARD, Role.ACTIVATION])
@pytest.mark.parametrize("profile", ["auto", "hot", "exact"])
def test_other_products_stay_exact(profile, role):
    assert resolve({"profile": profile}).choice("fc", role).schemes == (Exact(),)


def test_profiles():
    assert resolve({"profile": "hot"}).choice("fc", Role.GRAD_INPUT).schemes == (Hadamard(),)
    assert resolve({"profile": "hot"}).choice("fc", Role.GRAD_WEIGHT).schemes == (LowRank(),)
    assert not resolve({"profile": "hot"}).choice("fc", Role.GRAD_WEIGHT).priced
    assert resolve({"profile": "exact"}).choice("fc", Role.GRAD_WEIGHT).schemes == (Exact(),)
    choice = resolve().choice("fc", Role.GRAD_INPUT)
    assert choice.priced
    assert choice.schemes[0] == Exact()
    assert choice.origin == "profile 'auto'"


def test_precedence_is_options_environment_file_default(tmp_path):
    (tmp_path / "hadamard.toml").write_text(
        '[hadamard]\nprofile = "exact"\ngrad_weight = "exact"\n[hadamard.grad_input]\nbits = 8\n'
    )
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    environ = {"HADAMARD_FX_PROFILE": "auto", "HADAMARD_FX_GRAD_WEIGHT": '{"rank": 4}', "HADAMARD_FX_CACHE_DIR": "/x"}
    policy = resolve({"profile": "hot"}, environ=environ, directory=deep)
    assert policy.profile.name == "hot"
    assert policy.grad_weight == LowRank(rank=4)
    assert policy.grad_input == Hadamard(bits=8)
    assert [origin(policy, key) for key in ("profile", "grad_weight", "grad_input", "overrides")] == [
        "options",
        "environment",
        "file",
        "default",
    ]
    assert policy.file == str(tmp_path / "hadamard.toml")


def test_the_nearest_file_wins_and_the_table_may_be_left_out(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "hadamard.toml").write_text('profile = "hot"')
    (inner / "hadamard.toml").write_text('profile = "exact"')
    assert resolve(directory=inner).profile.name == "exact"
    assert resolve(directory=tmp_path).profile.name == "hot"


def test_first_matching_override_rules():
    policy = resolve(
        {"overrides": {r"blocks\.0\..*": "exact", r"blocks\..*": {"grad_input": {"bits": 8}}}, "profile": "hot"}
    )
    assert policy.choice("blocks.0.fc", Role.GRAD_INPUT).schemes == (Exact(),)
    assert policy.choice("blocks.0.fc", Role.GRAD_INPUT).origin == r"override 'blocks\.0\..*': profile 'exact'"
    assert policy.choice("blocks.1.fc", Role.GRAD_INPUT).schemes == (Hadamard(bits=8),)
    assert policy.choice("blocks.1.fc", Role.GRAD_WEIGHT).origin == "profile 'hot'"  # the override is silent on it
    assert policy.choice("head", Role.GRAD_INPUT).origin == "profile 'hot'"


def test_a_pattern_matches_the_whole_name():
    policy = resolve({"overrides": {"fc": "exact", r".*\.out": "exact"}})
    assert policy.unmatched(["fc1", "mlp.fc"]) == ("fc", r".*\.out")
    assert policy.unmatched(["fc", "mlp.out"]) == ()
    assert policy.unmatched_error(["fc", "mlp.out"]) is None
    error = policy.unmatched_error(["fc1", "mlp.fc"])
    assert isinstance(error, OverrideError)
    assert "override 'fc' matches no layer" in str(error)
    assert "fc1, mlp.fc" in str(error)


def test_schemes_may_be_objects():
    policy = resolve({"grad_input": Hadamard(order=32), "overrides": {"fc": {"grad_weight": LowRank(rank=4)}}})
    assert policy.grad_input == Hadamard(order=32)
    assert policy.choice("fc", Role.GRAD_WEIGHT).schemes == (LowRank(rank=4),)
    settings = json.loads(json.dumps(policy.settings))
    assert dict(settings)["grad_input"][0]["order"] == 32


BAD = {
    "unknown": ({"profil": "hot"}, OptionError, "unknown option 'profil'; did you mean 'profile'?"),
    "later": ({"memory_budget": 0.4}, OptionError, "unknown option 'memory_budget'; known: 'calibration'"),
    "profile": ({"profile": "hott"}, OptionError, "option 'profile': unknown profile 'hott'; did you mean 'hot'?"),
    "profile type": ({"profile": 3}, OptionError, "expected the name of a profile, got 3"),
    "no dict": (["hot"], OptionError, "options must be a dict"),
    "rank": ({"grad_weight": {"rank": 17}}, SchemeError, "rank must be from 1 to the order 16, got 17"),
    "order": ({"grad_input": {"order": 12}}, SchemeError, "order must be a power of two from 2 to 128, got 12"),
    "bits type": ({"grad_input": {"bits": "4"}}, SchemeError, "bits must be of type int, got '4' (str)"),
    "bits bool": ({"grad_input": {"bits": True}}, SchemeError, "bits must be of type int, got True (bool)"),
    "field": ({"grad_input": {"rnk": 8}}, SchemeError, "hadamard has no field 'rnk'; known: 'bits'"),
    "near field": ({"grad_weight": {"rnk": 8}}, SchemeError, "low_rank has no field 'rnk'; did you mean 'rank'?"),
    "scheme text": ({"grad_input": "fast"}, SchemeError, 'expected "exact" or a table of fields'),
    "wrong role": ({"grad_input": LowRank()}, SchemeError, "'low_rank' is no scheme for grad_input"),
    "wrong kind": ({"grad_input": {"kind": "low_rank"}}, SchemeError, "'low_rank' is no scheme for grad_input"),
    "overrides type": ({"overrides": "fc"}, OverrideError, "expected a table of layer patterns"),
    "regex": ({"overrides": {"a(": "exact"}}, OverrideError, "'a(' is no regular expression"),
    "pattern type": ({"overrides": {3: "exact"}}, OverrideError, "the pattern 3 must be text"),
    "rule": (
        {"overrides": {"fc": "exat"}},
        OverrideError,
        "override 'fc': unknown profile 'exat'; did you mean 'exact'?",
    ),
    "rule type": ({"overrides": {"fc": 8}}, OverrideError, 'expected "exact", another profile, or {"forward"'),
    "rule empty": ({"overrides": {"fc": {}}}, OverrideError, "got {}"),
    "rule role": ({"overrides": {"fc": {"grad_out": "exact"}}}, OverrideError, "unknown product 'grad_out'"),
    "count": ({"count_saturation": "yes"}, OptionError, "option 'count_saturation': expected true or false, got 'yes'"),
    "tile": (
        {"forward": {"kind": "saturating_forward", "tile": 24}},
        SchemeError,
        "tile must be one of 16, 32, 64, 128, got 24",
    ),
    "accumulator": (
        {"grad_input": {"kind": "saturating_grad_input", "accumulator_bits": 33}},
        SchemeError,
        "accumulator_bits must be from 4 to 32, got 33",
    ),
    "alpha": (
        {"grad_weight": {"kind": "saturating_grad_weight", "alpha": 1.5}},
        SchemeError,
        "alpha must be above 0 and at most 1, got 1.5",
    ),
    "saved rounding": (
        {"grad_weight": {"kind": "saturating_grad_weight", "input_rounding": "up"}},
        SchemeError,
        "input_rounding must be one of nearest, stochastic, pseudo_stochastic, got 'up'",
    ),
    "odd order": (
        {"grad_input": {"kind": "saturating_grad_input", "order": 12}},
        SchemeError,
        "order must be a power of two, or none for the largest that divides, got 12",
    ),
    "other product": (
        {"grad_input": {"kind": "saturating_forward"}},
        SchemeError,
        "'saturating_forward' is no scheme for grad_input",
    ),
    "device": ({"device_profile": 3}, OptionError, "expected the name of a device profile or the path"),
    "inductor": ({"inductor": [1]}, OptionError, "option 'inductor': expected a table"),
    "inductor object": ({"inductor": {"a": object()}}, OptionError, "option 'inductor' holds a value that JSON cannot"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name):
    options, kind, text = BAD[name]
    with pytest.raises(kind) as caught:
        resolve(options)
    assert type(caught.value) is kind
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"HADAMARD_FX_PROFIL": "hot"}, "variable HADAMARD_FX_PROFIL; did you mean 'HADAMARD_FX_PROFILE'?"),
        ({"HADAMARD_FX_OVERRIDES": "{"}, "HADAMARD_FX_OVERRIDES is no valid JSON"),
        ({"HADAMARD_FX_PROFILE": "hott"}, "environment, 'profile': unknown profile 'hott'"),
    ],
)
def test_bad_environment(environ, text):
    with pytest.raises(OptionError, match=r"HADAMARD|environment") as caught:
        resolve(environ=environ)
    assert text in str(caught.value)


def test_an_empty_variable_counts_as_unset():
    assert resolve(environ={"HADAMARD_FX_PROFILE": " "}).profile.name == "auto"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("profile = ", "cannot read"),
        ('hadamard = "hot"', "hadamard must be a table"),
        ('profile = "hot"\n[hadamard]\n', "'profile' outside the table [hadamard]"),
        ('profil = "hot"', "did you mean 'profile'?"),
        ("[hadamard.grad_weight]\nrank = 99", "'grad_weight': low_rank: rank must be"),
    ],
)
def test_bad_file(tmp_path, content, text):
    (tmp_path / "hadamard.toml").write_text(content)
    with pytest.raises(OptionError) as caught:
        resolve(directory=tmp_path)
    assert text in str(caught.value)
    assert "hadamard.toml" in str(caught.value)


def test_registered_profiles():
    mine = Profile("mine", "a test", (Hadamard(bits=8),), (Exact(),), priced=False)
    try:
        assert register_profile(mine) is mine
        assert register_profile(mine) is mine
        assert resolve({"profile": "mine"}).choice("fc", Role.GRAD_INPUT).schemes == (Hadamard(bits=8),)
        with pytest.raises(OptionError, match="already registered"):
            register_profile(Profile("mine", "a test", (Exact(),), (Exact(),), priced=False))
    finally:
        PROFILES.pop("mine", None)


def test_bad_profiles():
    with pytest.raises(OptionError, match="lower-case"):
        Profile("My profile", "", (Exact(),), (Exact(),), priced=False)
    with pytest.raises(OptionError, match="has no scheme for grad_weight"):
        Profile("mine", "", (Exact(),), (), priced=False)
    with pytest.raises(SchemeError, match="no scheme for grad_input"):
        Profile("mine", "", (LowRank(),), (Exact(),), priced=False)


def test_policies_are_values():
    assert resolve({"profile": "hot"}) == resolve({"profile": "hot"})
    assert len({resolve({"profile": "hot"}), resolve({"profile": "hot"}), resolve()}) == 2
    first = resolve({"overrides": {"a": "exact", "b": "hot"}})
    assert first.digest() != resolve({"overrides": {"b": "hot", "a": "exact"}}).digest()


def test_digest_is_the_same_in_another_process(tmp_path):
    script = "from hadamard_fx.policy import Policy; print(Policy.resolve({'profile': 'hot'}, environ={}).digest())"
    environ = dict(os.environ, PYTHONHASHSEED="7", PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environ, cwd=tmp_path, check=True
    )
    assert found.stdout.strip() == resolve({"profile": "hot"}).digest()
