"""Device profiles say where their figures come from; prices are sums of rooflines over what kernels declare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch

from hadamard_fx.cost_model import device_profile
from hadamard_fx.cost_model.cpu_flags import cpu_flags
from hadamard_fx.cost_model.device_profile import (
    PROFILE_FOLDER,
    DeviceProfile,
    known_profiles,
    load_profile,
    profile_for,
)
from hadamard_fx.cost_model.figures import KINDS
from hadamard_fx.cost_model.roofline import exact_traffic, seconds
from hadamard_fx.errors import DeviceError, OptionError
from hadamard_fx.kernels import compress_tokens, quantize_rows, quantize_weight, quantized_mm
from hadamard_fx.kernels.traffic import OWN_RATES, UNITS, Traffic
from hadamard_fx.plan import Gemm, Role, Size

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


def gemm(m: int, n: int, k: int, dtype: str = "float32", batch: int = 1) -> Gemm:
    return Gemm("mm", Role.GRAD_INPUT, "fc", Size(m), Size(n), Size(k), dtype, "cpu", "g", "w", batch=Size(batch))


def grad_input_seconds(m: int, n: int, k: int, dtype: str, profile: DeviceProfile) -> float:
    size = DTYPES[dtype]
    launches = [
        quantize_rows.traffic(m, k, 16, size),
        quantize_weight.traffic(k, n, 16, size),
        quantized_mm.traffic(m, n, k, profile.carrier, size),
    ]
    return float(seconds(launches, profile))


def grad_weight_seconds(m: int, n: int, tokens: int, dtype: str, profile: DeviceProfile) -> float:
    size = DTYPES[dtype]
    launches = [
        compress_tokens.traffic(tokens, m, 16, 8, size, profile.token_group),
        compress_tokens.traffic(tokens, n, 16, 8, size, profile.token_group),
        quantized_mm.traffic(m, n, tokens // 2, "int8", size),
    ]
    return float(seconds(launches, profile))


def a_profile(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((PROFILE_FOLDER / "h200.json").read_text(encoding="utf-8"))
    return {**data, **changes}


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- profiles ---


@pytest.mark.parametrize("name", known_profiles())
def test_bundled_profile_is_complete_and_says_where_its_figures_come_from(name: str) -> None:
    profile = profile_for("cpu", name)
    assert profile.name == name
    assert set(profile.rates) == {*UNITS, *OWN_RATES}
    others = {"bandwidth", "launch", "processors", "rescales int8", "rescales float8"}
    assert set(profile.sources) == {*UNITS, *OWN_RATES, *others, "carrier", "token_group", "column_group"}
    assert all(source.split(": ")[0] in KINDS for source in profile.sources.values())


def test_h200_figures_in_si_units() -> None:
    profile = profile_for("cuda", "h200")
    assert profile.bandwidth == pytest.approx(4.25e12)
    assert profile.rates["bfloat16"] == pytest.approx(690e12)
    assert profile.launch == pytest.approx(3e-6)
    assert (profile.carrier, profile.token_group, profile.column_group) == ("float8_e4m3", 256, 128)


def test_cuda_device_is_recognised_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, profile in (
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "cuda_generic"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "cuda_generic"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 D", "cuda_generic"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert profile_for("cuda").name.split()[0] == profile


def test_unknown_cuda_device_falls_back_openly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    assert profile_for("cuda").name == "cuda_generic (no profile of NVIDIA L4)"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("fpu", "cpu_generic"),
        ("fpu avx2 fma", "cpu_avx2"),
        ("fpu avx2 avx512_vnni", "cpu_vnni"),
        ("fpu avx2 fma avx512f avx512_vnni", "cpu_vnni"),
        ("amx_int8 amx_tile avx512_vnni avx2", "cpu_amx"),
        ("", "cpu_generic"),
    ],
)
def test_cpu_is_recognised_by_its_flags(flags: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_profile, "cpu_flags", lambda: frozenset(flags.split()))
    assert profile_for("cpu").name == name


def test_cpu_flags_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n\nflags\t\t: other\n")
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx2", "avx512_vnni"}
    assert cpu_flags(tmp_path / "absent") == frozenset()


def test_rates_per_core_follow_the_threads(threads: Any) -> None:
    threads(1)
    one = profile_for("cpu", "cpu_vnni")
    threads(2)
    two = profile_for("cpu", "cpu_vnni")
    assert two.rates["int8"] == pytest.approx(2 * one.rates["int8"])
    assert two.launch == one.launch
    assert one.digest() != two.digest()


def test_ceiling_holds(tmp_path: Path, threads: Any) -> None:
    threads(2)
    bandwidth = {"value": 14, "unit": "GB/s", "per": "core", "ceiling": 20, "kind": "derived", "source": "a test"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(a_profile(bandwidth=bandwidth)))
    assert load_profile(path).bandwidth == pytest.approx(20e9)


def test_digest_ignores_the_sources_and_sees_every_figure(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(a_profile()))
    same = profile_for("cuda", str(path))
    assert same == profile_for("cuda", "h200")
    assert same.digest() == profile_for("cuda", "h200").digest()
    changed = a_profile()
    changed["rates"]["int8"]["value"] += 1
    path.write_text(json.dumps(changed))
    assert profile_for("cuda", str(path)).digest() != same.digest()


# --- bad input ---


def test_unknown_name() -> None:
    with pytest.raises(OptionError, match=r"unknown device profile 'h2000'; known: .*h200"):
        profile_for("cuda", "h2000")


def test_unknown_device_type() -> None:
    with pytest.raises(DeviceError, match="no device profile describes devices of type 'mps'"):
        profile_for("mps")


def test_absent_and_truncated_files(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        profile_for("cpu", str(tmp_path / "absent.json"))
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(a_profile())[:300])
    with pytest.raises(OptionError, match="no complete JSON"):
        profile_for("cpu", str(path))
    with pytest.raises(OptionError, match="cannot be read"):
        profile_for("cpu", str(tmp_path))


FIGURE = {"value": 1, "unit": "TB/s", "kind": "measured", "source": "a test"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "something.else"}, "not a device profile"),
        ({"version": 2}, "this release reads version 1"),
        ({"name": None}, "'name' must be of type str"),
        ({"bandwidth": {**FIGURE, "unit": "furlongs"}}, "'bandwidth': unit must be one of"),
        ({"bandwidth": {**FIGURE, "value": 0}}, "must be positive numbers"),
        ({"bandwidth": {**FIGURE, "value": "4"}}, "must be positive numbers"),
        ({"bandwidth": {**FIGURE, "value": float("nan")}}, "must be positive numbers"),
        ({"bandwidth": {**FIGURE, "value": float("inf")}}, "must be positive numbers"),
        ({"bandwidth": {**FIGURE, "value": True}}, "must be positive numbers"),
        ({"bandwidth": {**FIGURE, "per": "socket"}}, '"per" must be'),
        ({"bandwidth": {**FIGURE, "kind": "guessed"}}, "kind must be one of measured, datasheet, derived"),
        ({"bandwidth": 4.25}, "'bandwidth' must be of type dict"),
        ({"rates": {}}, "'vector' is missing"),
        ({"rates": {"int9": FIGURE}}, "unknown unit 'int9'"),
    ],
)
def test_refused_file(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(a_profile(**changes)))
    with pytest.raises(OptionError, match=message) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("carrier", "int3"), ("token_group", -16), ("column_group", 20), ("token_group", True)]
)
def test_refused_preference(key: str, value: object, tmp_path: Path) -> None:
    data = a_profile()
    data["preferences"][key]["value"] = value
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    with pytest.raises(OptionError, match=key):
        load_profile(path)


def test_a_list_is_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("[1, 2]")
    with pytest.raises(OptionError, match="not a device profile"):
        load_profile(path)


# --- roofline ---


def test_the_longer_of_bytes_and_operations_counts() -> None:
    profile = profile_for("cuda", "h200")
    memory_bound = Traffic("copy", 10**9, 10**9, 1, "vector")
    compute_bound = Traffic("mm", 1, 1, 10**15, "bfloat16")
    assert seconds([memory_bound], profile) == pytest.approx(2e9 / 4.25e12 + 3e-6)
    assert seconds([compute_bound], profile) == pytest.approx(1e15 / 690e12 + 3e-6)
    assert seconds([memory_bound, compute_bound], profile) == pytest.approx(2e9 / 4.25e12 + 1e15 / 690e12 + 6e-6)
    assert seconds([], profile) == 0


def test_symbols_give_a_formula_that_agrees_with_the_numbers() -> None:
    profile = profile_for("cuda", "h200")
    m, n, k = sympy.symbols("M N K", positive=True, integer=True)
    formula = seconds([quantized_mm.traffic(m, n, k, "int8", 2)], profile)
    assert formula.free_symbols == {m, n, k}
    for sizes in ((50432, 768, 3072), (16, 16, 16)):
        number = seconds([quantized_mm.traffic(*sizes, "int8", 2)], profile)
        assert float(formula.subs(dict(zip((m, n, k), sizes, strict=True)))) == pytest.approx(number)


def test_exact_traffic() -> None:
    traffic = exact_traffic(gemm(8, 4, 2, "bfloat16", batch=3))
    assert (traffic.read, traffic.written, traffic.operations) == (3 * 12 * 2 * 2, 3 * 32 * 2, 3 * 2 * 64)
    assert (traffic.kernel, traffic.unit) == ("bmm", "bfloat16")
    assert exact_traffic(gemm(8, 4, 2, "float64")).operations == 2 * exact_traffic(gemm(8, 4, 2)).operations


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "float64", "int32"])
def test_every_dtype_has_a_price(dtype: str) -> None:
    assert seconds([exact_traffic(gemm(64, 64, 64, dtype))], profile_for("cpu", "cpu_generic")) > 0


# --- what the prices say ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(64, 64, 64), (4096, 1024, 4096), (4096, 4096, 1024), (8192, 8192, 8192), (17, 33, 5)]
)
@pytest.mark.parametrize("name", ["cpu_generic", "cpu_avx2"])
def test_no_gain_is_predicted_without_vnni(name: str, shape: tuple[int, int, int], dtype: str) -> None:
    profile = profile_for("cpu", name)
    exact = seconds([exact_traffic(gemm(*shape, dtype))], profile)
    assert grad_input_seconds(*shape, dtype, profile) > exact
    assert grad_weight_seconds(*shape, dtype, profile) > exact


@pytest.mark.parametrize("name", ["cpu_vnni", "cpu_amx"])
def test_large_float32_products_gain_with_vnni_and_tiny_ones_do_not(name: str) -> None:
    profile = profile_for("cpu", name)
    large, tiny = (4096, 1024, 4096), (16, 16, 16)
    assert grad_input_seconds(*large, "float32", profile) < seconds([exact_traffic(gemm(*large))], profile)
    assert grad_weight_seconds(*large, "float32", profile) < seconds([exact_traffic(gemm(*large))], profile)
    assert grad_input_seconds(*tiny, "float32", profile) > seconds([exact_traffic(gemm(*tiny))], profile)


def test_h200_gains_on_llama_and_not_on_the_square_projection_of_vit() -> None:
    profile = profile_for("cuda", "h200")
    llama, projection = (16384, 2048, 8192), (50432, 768, 768)
    assert grad_input_seconds(*llama, "bfloat16", profile) < seconds([exact_traffic(gemm(*llama, "bfloat16"))], profile)
    exact = seconds([exact_traffic(gemm(*projection, "bfloat16"))], profile)
    assert grad_input_seconds(*projection, "bfloat16", profile) > 0.9 * exact
