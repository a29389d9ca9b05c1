"""The benchmark: its baselines, its bound, its ratios. Nothing here asserts how long it takes."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from anyres.benchmark import measure, memory, run, stock
from anyres.benchmark.figures import figures
from anyres.benchmark.measure import ClickTimes, Timing
from anyres.benchmark.products import Bound, Product, encoder_products
from anyres.benchmark.run import Cell, Results
from anyres.benchmark.subjects import Subject
from anyres.cli.main import app
from anyres.errors import InputError
from anyres.models.build import build_encoder
from anyres.models.config import HRSAMConfig, TinyViTConfig, ViTConfig
from anyres.ops.length import LengthConfig

TINY_VIT = ViTConfig(
    dim=32,
    blocks=2,
    heads=2,
    global_blocks=(1,),
    window=4,
    image_size=96,
    neck=8,
    length=LengthConfig(scale="none"),
)
TINY_HRSAM = HRSAMConfig(
    dim=24, blocks=2, heads=2, window=4, state=4, out_blocks=(1,), neck=8, table=4
)


nobody = (lambda *_: None, lambda: None)  # listens to a run


def cell(model, side, dtype="bfloat16", seconds=1.0, **more):
    return Cell(model, side, side, dtype, Timing(seconds, seconds * 0.95, seconds * 1.1), **more)


@pytest.mark.parametrize("stem", [None, (4, 6, 8)])
@pytest.mark.parametrize("size_hw", [(96, 96), (80, 144)])
def test_stock_is_our_vit(size_hw, stem):
    torch.manual_seed(0)
    encoder = build_encoder(replace(TINY_VIT, stem=stem)).double().eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.2)
        pixels = torch.randn(2, 3, *size_hw, dtype=torch.float64)
        torch.testing.assert_close(stock.encode(encoder, pixels), encoder(pixels))


def test_stock_memory_at_1024():
    assert stock.bytes_needed(ViTConfig(), (1024, 1024)) == 3 * 12 * 4096**2 * 4


def counted(config, size_hw):
    """Multiplications and additions that torch counts, of dense products alone."""
    encoder = build_encoder(config)
    with FlopCounterMode(display=False) as counter:
        encoder(torch.randn(1, 3, *size_hw))  # with gradients: everything at once, in one thread
    return counter.get_flop_counts()["Global"]


@pytest.mark.parametrize(
    "config",
    [
        TINY_HRSAM,
        HRSAMConfig(**{**TINY_HRSAM.__dict__, "stem": (4, 6, 8), "table": 0}),
        HRSAMConfig(**{**TINY_HRSAM.__dict__, "anchor": 64}),
    ],
    ids=["plain", "stem", "anchor"],
)
def test_products_are_all_there(config):
    """At whole windows nothing is padded in plain blocks, and torch counts what we count."""
    plain = HRSAMConfig(**{**config.__dict__, "blocks": 1, "out_blocks": (0,)})
    grid_hw = (8, 12)
    found = sum(p.flops * n for p, n in encoder_products(plain, grid_hw).items())
    total = sum(counted(plain, (128, 192)).values())
    # Outside: the depthwise convolution of the neck, and each block's padding vector.
    neck = 2 * 9 * plain.neck * 96
    pads = 2 * plain.dim * 3 * plain.dim * (2 if plain.anchor else 1)
    assert total - neck - pads == found


@pytest.mark.parametrize("stem", [None, (4, 6, 8)])
def test_products_of_a_vit(stem):
    config, grid_hw = replace(TINY_VIT, stem=stem), (8, 12)
    found = sum(p.flops * n for p, n in encoder_products(config, grid_hw).items())
    encoder = build_encoder(config)
    with FlopCounterMode(display=False) as counter:
        stock.encode(encoder, torch.randn(1, 3, 128, 192))
    assert counter.get_total_flops() == found


def test_products_of_mobile_sam():
    config = TinyViTConfig(
        dims=(8, 12, 16, 20), depths=(1, 1, 2, 1), heads=(2, 2, 4), windows=(4, 2, 4), neck=8
    )
    found = sum(p.flops * n for p, n in encoder_products(config, (8, 12)).items())
    depthwise = 2 * 9 * (
        1 * 32 * 32 * 48 + 12 * 16 * 24 + 12 * 16 * 24 + 16 * 8 * 12 + 2 * 16 * 8 * 12
        + 20 * 8 * 12 + 20 * 8 * 12
    )  # fmt: skip
    pads = 2 * sum(dim * 3 * dim * depth for dim, depth in ((12, 1), (16, 2), (20, 1)))
    assert sum(counted(config, (128, 192)).values()) - depthwise - pads == found


def test_padding_asks_nothing():
    """Shifted windows: queries are real tokens, keys are whole windows."""
    odd = HRSAMConfig(**{**TINY_HRSAM.__dict__, "blocks": 2})
    products = encoder_products(odd, (4, 4))
    scores = {p: n for p, n in products.items() if p.batch > 1}
    # Plain: one window of 16 for 2 heads. Shifted by 2: four windows of 4 real tokens.
    assert scores == {
        Product(2, 16, 12, 16): 1,
        Product(2, 16, 16, 12): 1,
        Product(8, 4, 12, 16): 1,
        Product(8, 4, 16, 12): 1,
    }


def seconds(products):
    bound = Bound(products, torch.float32, torch.device("cpu"))
    bound.turn()
    return bound.seconds()


def test_bound_adds_up(monkeypatch):
    monkeypatch.setattr("anyres.benchmark.products._time", lambda run: run() or 1.0)
    products = encoder_products(TINY_HRSAM, (4, 4))
    assert seconds(products) == sum(products.values())
    # Too large to be made as a whole: two halves of it, each as long.
    huge = {Product(1, 2**13, 8, 2**12): 1}
    assert seconds(huge) == 2.0


def test_bound_is_the_faster_way_by_its_medians(monkeypatch):
    # Whole and in pieces, in three turns.
    times = iter([1.0, 4.0, 9.0, 3.0, 2.0, 5.0])
    monkeypatch.setattr("anyres.benchmark.products._time", lambda run: next(times))
    bound = Bound({Product(1, 4, 8, 4): 10}, torch.float32, torch.device("cpu"))
    for _ in range(3):
        bound.turn()
    assert bound.seconds() == 20.0


class Turns:
    """A bound that writes down when it is asked."""

    def __init__(self, calls):
        self.calls = calls

    def turn(self):
        self.calls.append("bound")

    def seconds(self):
        return 7.0


def test_by_turns():
    calls = []
    named = {name: partial(calls.append, name) for name in "ab"}
    passes = measure.by_turns(named, {"a": Turns(calls)}, {"a": partial(calls.append, "less")})
    assert calls == ["a", "less", "bound", "b"] * (measure.MOST * measure.ROUNDS + 1)
    assert (passes["a"].gemm, passes["b"].gemm, passes["b"].scan) == (7.0, None, None)
    assert passes["a"].quarter is not None
    assert passes["b"].quarter is None
    assert Timing.of([3.0, 1.0, 2.0]) == Timing(2.0, 1.0, 3.0)
    assert Timing(2.0, 1.0, 3.0).spread == 0.5


def test_a_first_call_that_compiles_is_no_measurement(monkeypatch):
    seconds = {"compiles": iter([26.0, 0.5, 0.4, 0.6, 0.5, 0.7]), "slow": iter([9.0, 8.0, 10.0])}
    monkeypatch.setattr(measure, "_seconds", lambda call: next(seconds[call()]))
    passes = measure.by_turns({name: (lambda name=name: name) for name in seconds}, {}, {})
    assert passes["compiles"].encoder == measure.Timing(0.5, 0.4, 0.7)
    assert passes["slow"].encoder == measure.Timing(9.0, 8.0, 10.0)


def test_what_takes_long_is_not_warmed_up(monkeypatch):
    calls = []
    monkeypatch.setattr(measure, "_seconds", lambda call: call() or 5.0)
    assert measure.by_turns({"a": lambda: calls.append("a")}, {}, {})["a"].encoder.median == 5.0
    assert len(calls) == 3


def test_scan_is_a_part_of_the_pass():
    encoder = build_encoder(TINY_HRSAM).eval()
    pixels = torch.randn(1, 3, 64, 64)
    passes = measure.by_turns({"a": lambda: encoder(pixels)}, {}, {})["a"]
    assert 0 < passes.scan.median < passes.encoder.median
    assert passes.scan.least <= passes.scan.median <= passes.scan.most


def test_figures():
    clicks = ClickTimes(Timing(0.2, 0.2, 0.2), Timing(0.02, 0.02, 0.02), 0.03)
    results = Results(
        {},
        [
            cell("stock", 1024, "float32", 10.0),
            cell("hrsam_b", 1024, seconds=1.5, gemm=1.0),
            cell("hrsam_ti", 2048, seconds=1.2, gemm=0.6, scan=Timing(0.3, 0.3, 0.3)),
            cell("hrsam_ti/cycles=1", 2048, seconds=1.0),
            cell("hrsam_ti", 4096, seconds=4.8, peak_memory=10**9, quarter=Timing(1.6, 1.6, 1.6)),
            cell("default", 1024, clicks=clicks),
        ],
    )
    found = {figure.name: figure for figure in figures(results)}
    values = {name: round(f.value, 3) for name, f in found.items() if f.value is not None}
    assert values == {
        "hrsam_b bfloat16 / stock, 1024²": 0.15,
        "hrsam_b / its GEMM bound, 1024²": 1.5,
        "hrsam_ti / its GEMM bound, 2048²": 2.0,
        "scan kernel / hrsam_ti, 2048²": 0.25,
        "hrsam_ti with 3 cycles / with 1, 2048²": 1.2,
        "hrsam_ti, 4096² / 2048²": 3.0,  # by that of the same turns
        "hrsam_ti peak memory, 4096²": 1.0,
        "default, one click, 1024²": 20.0,
    }
    assert found["hrsam_b bfloat16 / stock, 1024²"].holds is False
    assert found["hrsam_b / its GEMM bound, 1024²"].holds is True
    assert found["hrsam_b float32 / stock, 1024²"].holds is None


@pytest.mark.skipif(not memory.can_measure(), reason="this system does not tell a peak")
def test_memory_sees_what_is_taken(monkeypatch):
    taken = 200 * 2**20

    def greedy(_subject, _model):
        def encode(pixels):
            if pixels.shape[-1] == 512:
                torch.ones(taken // 4)

        return encode

    monkeypatch.setattr(memory, "encode_call", greedy)
    found = memory.peak(Subject.named("default", "float32"), (512, 512))
    assert 0.9 * taken < found < 1.2 * taken


def test_what_takes_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(memory, "can_measure", lambda: False)
    results = Results({}, [cell("hrsam_b", 1024, seconds=30.0)])
    run.run(["hrsam_b"], [(2048, 2048)], "bfloat16", results, *nobody)
    assert results.cells[-1].note == "left out: about 120 s a picture"
    assert [measure.rounds(seconds) for seconds in (0.1, 1.0, 3.0, 30.0)] == [15, 5, 3, 3]


def test_names():
    one = Subject.named("hrsam_ti/cycles=1/float32", "bfloat16")
    assert (one.name, one.dtype_name) == ("hrsam_ti/cycles=1", "float32")
    assert one.config.encoder.cycles == 1
    assert Subject.named("hrsam_ti", "bfloat16").dtype == torch.bfloat16
    stock_sam = Subject.named("stock", "bfloat16")
    assert (stock_sam.is_baseline, stock_sam.dtype) == (True, torch.float32)
    for name, message in (("sam_vit_b/cycles=1", "has no cycle-scan"), ("sam", "no model is cal")):
        with pytest.raises(InputError, match=message):
            Subject.named(name, "auto")


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr(run, "available_bytes", lambda: 10**9)
    monkeypatch.setattr(memory, "can_measure", lambda: False)
    results = Results({})
    run.run(["stock"], [(1024, 1024)], "auto", results, *nobody)
    assert results.cells[0].encoder is None
    assert results.cells[0].note == "does not fit: needs 2 GB, 1 GB are free"


def test_command(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROUNDS", 3)
    monkeypatch.setattr(measure, "CLICKS", 2)
    out, png = tmp_path / "b.json", tmp_path / "b.png"
    words = ["benchmark", "--models", "hrsam_xs", "--sizes", "64,128,96x128"]
    result = CliRunner().invoke(app, [*words, "--json", str(out), "--plot", str(png)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["complete"] is True
    assert [(c["height"], c["width"]) for c in report["cells"]] == [(64, 64), (96, 128), (128, 128)]
    first = report["cells"][0]
    assert first["gemm"] > 0
    assert first["clicks"]["click"]["median"] > 0
    assert first["scan"]["median"] < first["encoder"]["median"]
    assert [c["quarter"] is not None for c in report["cells"]] == [False, False, True]
    assert {f["name"] for f in report["figures"]} >= {"hrsam_ti peak memory, 4096²"}
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "hrsam_xs" in result.output


def test_interrupted(tmp_path, monkeypatch):
    done = run._measure_size

    def second_stops(subjects, size, results):
        if size[0] > 64:  # killed here, it would leave what is there already
            saved.append(json.loads(out.read_text()))
            raise KeyboardInterrupt
        yield from done(subjects, size, results)

    saved, out = [], tmp_path / "b.json"
    monkeypatch.setattr(run, "_measure_size", second_stops)
    monkeypatch.setattr(measure, "ROUNDS", 3)
    monkeypatch.setattr(measure, "CLICKS", 1)
    monkeypatch.setattr(memory, "can_measure", lambda: False)
    words = ["benchmark", "--models", "default", "--sizes", "64,128", "--json", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    report = json.loads(out.read_text())
    assert report["complete"] is False
    assert saved == [report]
    assert [c["height"] for c in report["cells"]] == [64]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "100"], "100x100 is no multiple of the patch of default, 16 pixels"),
        (["--sizes", "12x"], "give pixels as 1024"),
        (["--sizes", ""], "--sizes names none"),
        (["--models", "big"], "no model is called 'big'"),
        (["--models", ","], "--models names none"),
        (["--dtype", "int8"], "dtype 'int8' is unknown"),
    ],
)
def test_wrong_usage(words, message):
    result = CliRunner().invoke(app, ["benchmark", *words])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
