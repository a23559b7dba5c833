"""The generated kernels of quantize_both: their sources, that they compile, and on a device what they compute."""

from __future__ import annotations

import importlib.util
import math
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hadamard_fx.errors import KernelError
from hadamard_fx.kernels import ahead, library, quantize_both
from hadamard_fx.kernels.both_source import Form, source
from hadamard_fx.kernels.generated import module
from hadamard_fx.kernels.prologue import Prologue, Step

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "kernels"
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
from hadamard_fx.kernels import triton_both  # noqa: E402

KERNEL = library.load()["quantize_both"]

IDENTITY = Prologue.identity()
RELU_BACKWARD = Prologue(("tile", "tile"), (Step("le", ("x1", 0.0)), Step("where", ("s0", 0.0, "x0"))), "s1")
GELU_BACKWARD = Prologue(
    ("tile", "tile"),
    (
        *(
            Step("mul", ("x1", math.sqrt(0.5))),
            Step("erf", ("s0",)),
            Step("add", ("s1", 1.0)),
            Step("mul", ("s2", 0.5)),
        ),
        *(Step("mul", ("x1", "x1")), Step("mul", ("s4", -0.5)), Step("exp", ("s5",))),
        *(Step("mul", ("s6", 1 / math.sqrt(2 * math.pi))), Step("mul", ("x1", "s7")), Step("add", ("s3", "s8"))),
        Step("mul", ("x0", "s9")),
    ),
    "s10",
)
SILU_TIMES = Prologue(
    ("tile", "tile"), (Step("sigmoid", ("x0",)), Step("mul", ("x0", "s0")), Step("mul", ("s1", "x1"))), "s2"
)
NORM = Prologue(
    ("tile", "row", "row", "column", "column"),
    (Step("sub", ("x0", "x1")), Step("mul", ("s0", "x2")), Step("mul", ("s1", "x3")), Step("add", ("s2", "x4"))),
    "s3",
)
DROPOUT = Prologue(
    ("tile", "tile", "scalar"),
    (Step("float", ("x1",)), Step("mul", ("x0", "s0")), Step("mul", ("s1", "x2"))),
    "s2",
)
CROSS_ENTROPY = Prologue(
    ("tile", "row", "column"),  # g; the class of each token and the number of each column, both int64
    (Step("eq", ("x1", "x2")), Step("where", ("s0", -1.0, 0.0)), Step("add", ("x0", "s1"))),
    "s2",
)
PROLOGUES = {
    "identity": IDENTITY, "relu_backward": RELU_BACKWARD, "gelu_backward": GELU_BACKWARD, "silu_times": SILU_TIMES,
    "norm": NORM, "dropout": DROPOUT, "cross_entropy": CROSS_ENTROPY,
}  # fmt: skip
ROWS, TOKENS = (16, 4, 128), (16, 8, 8, 256)

FORMS = {
    "gelu_backward_both": Form(
        *(GELU_BACKWARD.to_text(), (False, False), "bfloat16", (16, 7, 1), (16, 8, 127, 1)),
        *(True, False, False, 2, 4, True, False),
    ),
    "gelu_backward_signs": Form(
        *(GELU_BACKWARD.to_text(), (False, False), "bfloat16", (16, 7, 1), (16, 8, 127, 1)),
        *(True, True, True, 2, 4, True, False),
    ),
    "silu_times_kept": Form(
        SILU_TIMES.to_text(), (False, False), "bfloat16", (), (16, 8, 127, 0), False, True, False, 1, 4, False, False
    ),
    "identity_rows": Form(
        IDENTITY.to_text(), (False,), "float16", (32, 127, 0), (), False, False, False, 2, 2, True, True
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_generated_source_is_the_golden_one(name: str) -> None:
    path, text = GOLDEN / f"{name}.py.txt", source(FORMS[name])
    compile(text, name, "exec")
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def inputs_of(prologue: Prologue, tokens: int, channels: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random inputs; small multiples of 1/16 for the identity, so that every sum is exact."""
    generator = torch.Generator().manual_seed(tokens + channels)
    shapes = {"tile": (tokens, channels), "row": (tokens, 1), "column": (1, channels), "scalar": ()}
    if prologue == IDENTITY:
        return [(torch.randint(-64, 65, shapes["tile"], generator=generator) / 16).to(dtype)]
    made = [torch.randn(shapes[kind], generator=generator) for kind in prologue.inputs]
    made = [x if x.dim() < 2 or kind != "tile" else x.to(dtype) for x, kind in zip(made, prologue.inputs, strict=True)]
    if prologue == DROPOUT:
        made[1] = made[1] > 0
    if prologue == CROSS_ENTROPY:
        made[1] = torch.randint(-1, channels, shapes["row"], generator=generator)
        made[2] = torch.arange(channels)[None]
    return made


def call(
    prologue: Prologue,
    inputs: list[torch.Tensor],
    rows: tuple[int, ...],
    tokens: tuple[int, ...],
    *,
    rounding: str = "stochastic",
    sums: bool = True,
    keep: bool = False,
    carrier: str = "int8",
    dtype: torch.dtype = torch.bfloat16,
    signs: bool = False,
) -> tuple[Any, ...]:
    """Arguments of the operator; the seeds lie where the inputs do."""
    fake = isinstance(inputs[0], FakeTensor)
    device = inputs[0].device
    seeds = (
        [torch.empty((), dtype=torch.int64, device=device)] * 3
        if fake
        else torch.tensor([0x0123456789ABCDEF, -5, 11]).to(device)
    )
    return (
        *(inputs, prologue.to_text(), dtype, list(rows), rounding, carrier, seeds[0]),
        *(list(tokens), rounding, seeds[1], sums, keep, seeds[2] if signs else None),
    )


CASES = [
    (name, shape, ROWS, TOKENS, options)
    for name in PROLOGUES
    for shape, options in (((512, 256), {}), ((700, 203), {"keep": True, "sums": True}))
] + [
    ("identity", (1024, 384), ROWS, TOKENS, {"rounding": "nearest"}),
    ("identity", (1024, 384), (16, 8, 256), TOKENS, {"rounding": "nearest", "carrier": "int8"}),
    ("identity", (1024, 384), ROWS, TOKENS, {"rounding": "nearest", "signs": True}),
    ("identity", (700, 203), (16, 8, 256), TOKENS, {"rounding": "nearest", "signs": True, "keep": True}),
    ("identity", (300, 72), (), (16, 4, 8, 256), {"signs": True}),
    ("gelu_backward", (1024, 256), ROWS, TOKENS, {"signs": True, "keep": True}),
    ("identity", (513, 130), (64, 4, 64), (32, 8, 8, 128), {"dtype": torch.float16}),
    ("identity", (129, 65), (2, 4, 128), (), {"sums": False, "carrier": "float8_e4m3"}),
    ("identity", (300, 72), ROWS, (), {"sums": True}),
    ("identity", (1, 1), ROWS, TOKENS, {}),
    ("gelu_backward", (1000, 96), (), (16, 16, 8, 512), {"keep": True}),
    ("silu_times", (640, 192), (), (64, 16, 8, 64), {"rounding": "pseudo_stochastic", "sums": False}),
]  # fmt: skip


def identify(case: tuple[Any, ...]) -> str:
    name, shape, rows, tokens, options = case
    words = [name, "x".join(map(str, shape)), f"rows{rows}", f"tokens{tokens}", *map(str, options.values())]
    return "-".join(words).replace(" ", "")


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=identify)
def test_device_agrees_with_the_cpu(case: tuple[Any, ...]) -> None:
    name, shape, rows, tokens, options = case
    prologue, dtype = PROLOGUES[name], options.get("dtype", torch.bfloat16)
    inputs = inputs_of(prologue, *shape, dtype)
    expected = KERNEL.op(*call(prologue, inputs, rows, tokens, **options))
    found = KERNEL.op(*call(prologue, [x.cuda() for x in inputs], rows, tokens, **options))
    torch.cuda.synchronize()
    names = ("y", "rows_q", "rows_scale", "tokens_q", "tokens_scale", "sums")
    exact = name == "identity" and options.get("rounding") == "nearest"
    for what, left, right in zip(names, found, expected, strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype), what
        difference = (left.cpu().double() - right.double()).abs()
        if not difference.numel():
            continue
        if left.dtype in (torch.int8, torch.float8_e4m3fn):
            # y may round to another 16-bit number; what is drawn may fall on the other side of an integer.
            pseudo = options.get("rounding") == "pseudo_stochastic"  # follows the last bit of its value
            allowed = 0.0 if exact else 2e-3 if name != "identity" else 1e-4
            share = float((difference > (1 if pseudo or name != "identity" else 0)).double().mean())
            assert share <= allowed, (what, share)
            assert pseudo or float((difference > 0).double().mean()) <= max(allowed, 2e-2 if name != "identity" else 0)
        else:
            bound = 2.0**-7 if what == "y" or name != "identity" else 1e-6
            assert float(difference.max()) <= bound * max(float(right.double().abs().max()), 1e-30), what


@pytest.mark.gpu
def test_poison_stays_within_its_scale() -> None:
    for value in (math.nan, math.inf):
        y = torch.randn(512, 256).bfloat16()
        y[70, 130] = value
        *_, rows_scale, _, tokens_scale, _ = KERNEL.op(*call(IDENTITY, [y.cuda()], ROWS, TOKENS))
        assert (~rows_scale.isfinite()).nonzero().tolist() == [[1, 70]]
        assert (~tokens_scale.isfinite()).nonzero().tolist() == [[0, 130]]


@pytest.mark.gpu
def test_other_operators_use_it_for_groups() -> None:
    kernels, seed = library.load(), torch.tensor(7)
    x = (torch.randint(-64, 65, (600, 200)) / 16).bfloat16()
    for name, settings in (
        ("quantize_rows", (seed, 16, 4, "token", "stochastic", "int8", 128)),
        ("compress_tokens", (seed, 16, 8, 8, "channel", "stochastic", 256, True)),
        ("compress_tokens", (seed, 16, 8, 8, "channel", "stochastic", 256, False)),
        ("compress_tokens", (seed, 16, 8, 8, "channel", "stochastic", 256, True, torch.tensor(3))),
    ):
        moved = [s.cuda() if isinstance(s, torch.Tensor) else s for s in settings]
        for left, right in zip(kernels[name].op(x.cuda(), *moved), kernels[name].op(x, *settings), strict=True):
            assert left.shape == right.shape
            if right.numel():
                wrong = (left.cpu().double() - right.double()).abs() > 1e-5 * right.double().abs().max()
                assert float(wrong.double().mean()) <= 1e-4


@pytest.mark.parametrize(
    ("rows", "tokens", "dtype", "words"),
    [
        ((16, 4, 0), (), torch.bfloat16, "group"),
        ((128, 4, 128), (), torch.bfloat16, "order"),
        ((), (16, 10, 8, 256), torch.bfloat16, "power of two"),
        ((), (16, 8, 8, 1024), torch.bfloat16, "64, 128, 256 or 512"),
        ((16, 8, 256), (16, 8, 8, 512), torch.bfloat16, "shared memory"),
        (ROWS, TOKENS, torch.float32, "16 bits"),
    ],
)
def test_what_the_kernel_does_not_know_has_a_reason(
    rows: tuple[int, ...], tokens: tuple[int, ...], dtype: torch.dtype, words: str
) -> None:
    assert words in quantize_both.why_not(rows, tokens, dtype)
    assert not quantize_both.why_not(ROWS, TOKENS, torch.bfloat16)


def test_every_form_compiles_for_hopper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that compiles ahead, without a device."""
    jobs: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ahead, "_workers", lambda: (True,))
    monkeypatch.setattr(ahead, "_target", lambda device: ("cuda", 90, 32))
    monkeypatch.setattr(ahead, "cache_directory", lambda device: str(tmp_path / f"{len(jobs)}"))
    monkeypatch.setattr(ahead, "_SUBMITTED", {})
    monkeypatch.setattr(ahead, "_QUEUE", Recorder(jobs))
    monkeypatch.setattr(triton_both, "describe", lambda ordinal: (132, 90))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    triton_both._plan.cache_clear()
    real = {name: inputs_of(PROLOGUES[name], 512, 256, torch.bfloat16) for name in PROLOGUES}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for name in ("identity", "gelu_backward", "norm", "dropout"):
            inputs = [torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in real[name]]
            KERNEL.cuda(*call(PROLOGUES[name], inputs, ROWS, TOKENS, keep=True, signs=name == "norm"))  # type: ignore[misc]
    triton_both._plan.cache_clear()
    assert len(jobs) == 4 and all(Path(job[0]).is_file() for job in jobs), "generated kernels are named by their files"
    process = ahead._process()
    assert process is not None
    said, _ = process.communicate(b"".join(map(pickle.dumps, jobs)), timeout=300)
    missing = [number for number in range(4) if not list((tmp_path / str(number)).rglob("*.cubin"))]
    assert not missing, said


class Recorder:
    """A queue that only remembers."""

    def __init__(self, jobs: list[tuple[Any, ...]]) -> None:
        self.jobs = jobs

    def put(self, entry: tuple[str, tuple[Any, ...], object]) -> None:
        self.jobs.append(entry[1])


def test_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_both, "describe", lambda ordinal: (108, 80))
    triton_both._plan.cache_clear()
    with FakeTensorMode():
        arguments = call(IDENTITY, [torch.empty(512, 256, device="cuda", dtype=torch.bfloat16)], ROWS, TOKENS)
        with pytest.raises(KernelError, match=r"compute capability 8\.0"):
            KERNEL.cuda(*arguments)  # type: ignore[misc]


def test_a_launch_is_for_the_dtypes_that_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its compiled kernel takes addresses: another dtype behind them would be read as the first."""
    jobs: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ahead, "submit", lambda *job: jobs.append(job))
    monkeypatch.setattr(triton_both, "describe", lambda ordinal: (132, 90))
    monkeypatch.setattr(triton_both.Launch, "__call__", lambda self, *tensors: jobs.append(self))
    triton_both._plan.cache_clear()
    with FakeTensorMode():
        narrow, wide = (torch.empty(512, 256, device="cuda", dtype=d) for d in (torch.bfloat16, torch.float32))
        KERNEL.cuda(*call(IDENTITY, [narrow], ROWS, TOKENS))  # type: ignore[misc]
        KERNEL.cuda(*call(IDENTITY, [wide], ROWS, TOKENS))  # type: ignore[misc]
        KERNEL.cuda(*call(IDENTITY, [narrow], ROWS, TOKENS, carrier="float8_e4m3"))  # type: ignore[misc]
        KERNEL.cuda(*call(IDENTITY, [narrow], ROWS, TOKENS))  # type: ignore[misc]
    triton_both._plan.cache_clear()
    assert len(jobs) == 4 and len(set(map(id, jobs))) == 3 and jobs[0] is jobs[3]


def test_short_forms_stand_where_their_digits_suffice() -> None:
    """Beside 1 nothing is left of the digits of erf near 0; alone, they are the result."""
    alone = Prologue(("tile",), (Step("erf", ("x0",)), Step("mul", ("s0", "x0"))), "s1")
    both = Prologue(("tile",), (Step("tanh", ("x0",)), Step("add", ("s0", 1.0)), Step("mul", ("s0", "s1"))), "s2")
    beside = Prologue(("tile",), (Step("tanh", ("x0",)), Step("add", ("s0", 1.0))), "s1")
    texts = [
        source(Form(p.to_text(), (False,), "bfloat16", (), (16, 8, 127, 0), False, False, False, 1, 4, True, False))
        for p in (alone, both, beside)
    ]
    assert "parts.erf(x0)" in texts[0] and "parts.tanh(x0)" in texts[1]
    assert "parts.tanh_beside_one(x0)" in texts[2] and "erf_beside_one" in source(FORMS["gelu_backward_both"])


def test_the_short_forms_are_as_good_as_they_say() -> None:
    x = torch.cat(
        [torch.logspace(-30, 1, 4001, dtype=torch.float64), -torch.logspace(-30, 1, 4001, dtype=torch.float64)]
    )
    a, square = x.float().abs(), x.float() ** 2
    t = 1 / (1 + 0.3275911 * a)
    p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = torch.where(x < 0, -(1 - p * torch.exp(-square)), 1 - p * torch.exp(-square))
    assert float((erf - torch.erf(x)).abs().max()) < 5e-7
    series = x.float() * (1.1283791670955126 + square * (-0.37612638903183754 + square * 0.11283791670955126))
    erf = torch.where(a < 0.1, series, erf)
    assert float(((erf - torch.erf(x)) / torch.erf(x)).abs().max()) < 1e-5
    tanh = 1 - 2 / (1 + torch.exp(2 * x.float()))
    series = x.float() * (1 + square * (-1 / 3 + square * (2 / 15)))
    tanh = torch.where(a < 0.1, series, tanh)
    assert float(((tanh - torch.tanh(x)) / torch.tanh(x)).abs().max()) < 1e-5


def test_threads_that_come_first_together_find_the_whole_module(tmp_path: Path) -> None:
    text = "import time\ntime.sleep(0.2)\nready = True\n"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: module(str(tmp_path), "slow", text).ready, range(8)))
    assert found == [True] * 8
