"""The command bench measures what it says it measures."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from recur import bench
from recur.benchmarks import gpu, kernels
from recur.benchmarks.clock import Turns
from recur.benchmarks.harness import (
    Record,
    Report,
    Settings,
    imdb_lengths,
    matrix_products,
    pack_lengths,
    peak_bytes,
    race,
    ratio,
)
from recur.benchmarks.training import _alone
from recur.nn import compiled


def test_embedded_lengths_are_those_of_the_reviews():
    lengths = imdb_lengths(Settings(quick=True, repeats=1, device="cpu"))
    assert len(lengths) == 25_000
    assert lengths.min() >= 11 and lengths.max() <= 2752
    assert abs(lengths.mean() - 270.7) < 1
    assert np.median(lengths) == pytest.approx(202, abs=3)


def test_rivals_run_in_turn():
    order = []
    times = race({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, "cpu")
    assert order == ["a", "b"] * 4
    assert [len(values) for values in times.values()] == [3, 3]


def test_ratio_is_the_median_of_pairs():
    assert ratio({"slow": [4.0, 9.0, 100.0], "fast": [2.0, 3.0, 1.0]}, "slow", "fast") == 3.0


def test_loops_that_take_turns_do_not_count_their_waiting(tmp_path):
    turn, order = tmp_path / "turn", []
    turn.write_text("command")

    def run(name, other, steps):
        turns = Turns(turn, name, other, lambda: False)
        began, wall = turns.now(), time.perf_counter()
        for _ in range(steps):
            turns.wait()
            order.append(name)
            time.sleep(0.05)
            turns.leave()
        turns.leave(done=True)
        return turns.now() - began, time.perf_counter() - wall

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(run, "command", "plain", 5), pool.submit(run, "plain", "command", 3)]
        (own, _), (others, wall) = (one.result(timeout=30) for one in running)
    assert order[:6] == ["command", "plain"] * 3 and order[6:] == ["command"] * 2  # who is done is not waited for
    assert own >= 0.25 and others >= 0.15
    assert wall - others >= 0.1  # at least the command's first steps but for the time a thread takes to start


def test_peak_bytes_counts_what_is_held_at_once():
    assert peak_bytes(lambda: torch.empty(1000, dtype=torch.float32), "cpu") == pytest.approx(4000, abs=200)

    def two():
        first = torch.empty(1000)
        return first + 1

    assert peak_bytes(two, "cpu") == pytest.approx(8000, abs=400)


def test_packed_rows_have_the_lengths():
    batch = pack_lengths([2, 5, 3], 4)
    assert batch.batch_sizes.tolist() == [3, 3, 2, 1, 1]
    assert batch.data.shape == (10, 4)


def test_bars_are_judged_only_at_full_size(capsys):
    report = Report(quick=False)
    report.bar("speed", 11.9, 12.0)
    report.bar("waste", 0.02, 0.03, at_most=True)
    assert [bar["met"] for bar in report.bars] == [False, True]
    quick = Report(quick=True)
    quick.bar("speed", 11.9, 12.0)
    quick.print_bars()
    assert "not judged" in capsys.readouterr().out


def test_a_section_writes_tables_json_and_a_plot(tmp_path, capsys):
    bench.main(["loader", "--quick", "--device", "cpu", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| ranks |" in printed
    record = json.loads((tmp_path / "quick" / "bench.json").read_text())
    section = record["sections"]["loader"]
    assert section["machine"]["torch"] == torch.__version__
    assert {bar["name"] for bar in section["bars"]} >= {"64 ranks: fullest rank above the mean"}
    assert (tmp_path / "quick" / "bench.png").stat().st_size > 1000


def test_a_section_that_measures_nothing_leaves_what_was_measured_before(tmp_path):
    """`language` without `--wikitext`, which is in the list of all sections."""
    record = Record(Settings(quick=True, repeats=1, device="cpu", out=str(tmp_path)))
    record.measure("language", lambda settings, report: report.table("epochs", [{"": "recur", "ms": 1.0}]))
    again = Record(Settings(quick=True, repeats=1, device="cpu", out=str(tmp_path)))
    for name in ("language", "bandwidth"):
        again.measure(name, lambda settings, report: None)
    sections = json.loads((tmp_path / "quick" / "bench.json").read_text())["sections"]
    assert list(sections) == ["language"] and list(sections["language"]["tables"]) == ["epochs"]


@pytest.mark.parametrize("recurrent", [True, False])
def test_a_recurrence_is_compared_with_products_as_cudnn_has_them(recurrent, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "mm", lambda a, b: seen.append(torch.backends.cuda.matmul.fp32_precision))
    before = torch.backends.cuda.matmul.fp32_precision
    runs, _ = matrix_products("cpu", recurrent=recurrent)
    runs["torch.mm, float32"]()
    assert set(seen) == {"tf32" if recurrent else before}
    assert torch.backends.cuda.matmul.fp32_precision == before


def gpu_record(monkeypatch, folder, engine, loss) -> tuple[int, dict]:
    """What `make gpu` gives and writes, with these sections and tests that pass."""
    path = folder / "gpu.json"
    monkeypatch.setattr(gpu, "run_tests", lambda limit: {"counts": {"passed": 1}, "tests": {}, "exit_code": 0})
    monkeypatch.setattr(kernels, "engine", engine)
    monkeypatch.setattr(kernels, "loss", loss)
    monkeypatch.setattr("sys.argv", ["gpu", "--quick", "--out", str(path)])
    return gpu.main(), json.loads(path.read_text())


def measured(settings, report):
    report.table("rates", [{"": "recur", "ms": 1.0}])


def test_what_failed_on_a_gpu_leaves_what_was_measured(tmp_path, monkeypatch):
    def fails(settings, report):
        assert json.loads((tmp_path / "gpu.json").read_text())["tests"]["exit_code"] == 0, "it is there by now"
        measured(settings, report)
        raise RuntimeError("out of memory")

    def unknown(device):
        raise OSError("no driver")

    assert gpu_record(monkeypatch, tmp_path, measured, measured)[0] == 0
    monkeypatch.setattr("recur.benchmarks.harness.machine", unknown)
    code, record = gpu_record(monkeypatch, tmp_path, fails, measured)
    assert code == 1 and record["tests"]["counts"] == {"passed": 1}
    assert record["bench"]["machine"] == {"error": "OSError: no driver"}
    assert record["bench"]["engine"]["error"] == "RuntimeError: out of memory"
    assert list(record["bench"]["engine"]["tables"]) == list(record["bench"]["loss"]["tables"]) == ["rates"]
    assert "error" not in record["bench"]["loss"]


def test_what_takes_too_long_on_a_gpu_is_stopped(tmp_path, monkeypatch):
    def endless(settings, report):
        measured(settings, report)
        time.sleep(60)

    monkeypatch.setattr("recur.benchmarks.harness.machine", lambda device: {})
    monkeypatch.setattr(gpu, "SECTIONS", {"engine": 0.5 / gpu.LIMIT, "loss": 0.0})
    code, record = gpu_record(monkeypatch, tmp_path, endless, measured)
    assert code == 1 and record["seconds"] < 30
    assert {record["bench"][name]["error"] for name in ("engine", "loss")} == {"TimeoutError: no time left"}
    assert record["bench"]["engine"]["tables"] and not record["bench"]["loss"]["tables"]


LOW_LOSSES = {"fused, bf16-mixed", "plain, bf16-mixed"}  # where the processor multiplies bfloat16


@pytest.mark.slow
def test_loss_rivals_agree_and_are_measured(tmp_path):
    bench.main(["loss", "--quick", "--device", "cpu", "--repeats", "1", "--out", str(tmp_path)])
    tables = json.loads((tmp_path / "quick" / "bench.json").read_text())["sections"]["loss"]["tables"]
    (rows,) = tables.values()
    assert {"fused", "plain"} <= {row[""] for row in rows} <= {"fused", "plain", *LOW_LOSSES}
    assert all(row["extra MB"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(not compiled.available(torch.float32), reason="no compiled kernels on this machine")
def test_bandwidth_counts_tokens_bytes_and_threads(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bench.main(["bandwidth", "--quick", "--device", "cpu", "--repeats", "1", "--out", str(tmp_path)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    tables = json.loads((tmp_path / "quick" / "bench.json").read_text())["sections"]["bandwidth"]["tables"]
    generation, scans, threads = tables.values()
    exact = [row for row in generation if "float32" in row[""]]
    # weights of one LSTM layer and of the output layer, in panels whose last one is padded
    assert all(
        4e-6 * (8 * 32 * 32 + 32 * 2000) <= row["MB a step"] <= 4e-6 * (10 * 32 * 32 + 32 * 2100) for row in exact
    )
    assert {row["texts"] for row in generation} == {1, 16} and all(row["tokens/s"] > 0 for row in generation)
    assert {row["pass"] for row in scans} == {"training", "evaluation"} and all(row["GB/s"] > 0 for row in scans)
    assert len(threads) >= 3 and all(row["1 threads, ms"] > 0 < row["2 threads, ms"] for row in threads)


@pytest.mark.parametrize("words", [["speed"], ["engine", "--device", "tpu"]])
def test_mistakes_are_one_line(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main([*words, "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("section", ["engine", "shapes", "train", "startup"])
def test_every_section_runs(section, tmp_path):
    bench.main([section, "--quick", "--repeats", "1", "--device", "cpu", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "quick" / "bench.json").read_text())["sections"][section]
    assert record["bars"]
    assert all(bar["met"] is None for bar in record["bars"])


def test_a_slow_rival_is_compared_within_its_own_race():
    """Its rounds were set against the first ones of another race."""
    from recur.benchmarks.kernels import _Race

    first = {"recur": [1.0, 1.0, 1.0], "torch dense, with pads": [2.0, 2.0, 2.0], "torch packed": [40.0, 42.0]}
    late = {"recur": [2.0, 2.1], "torch packed": [40.0, 42.0]}
    result = _Race(first, 1.0, (1.0, 1.0), late)
    assert result.against("torch packed") == 20.0 and result.against("torch dense, with pads") == 2.0
    assert [row["recur is faster by"] for row in result.rows("a")] == [1.0, 2.0, 20.0]


@pytest.mark.slow
def test_what_is_timed_beside_the_command_has_its_settings() -> None:
    """Else the command's own, which are not of its kernels, were credited to these."""
    assert _alone(eval)("float(__import__('torch').tensor(1e-39) * 1) == 0")


def test_the_load_is_that_before_a_section(tmp_path, monkeypatch):
    """Its own says nothing of neighbours."""
    loads = iter([(0.1, 0, 0), (0.2, 0, 0), *[(9.0, 0, 0)] * 9])
    monkeypatch.setattr("os.getloadavg", lambda: next(loads))
    record = Record(Settings(quick=True, repeats=1, device="cpu", out=str(tmp_path)))
    record.measure("mine", lambda settings, report: report.bar("a", 1.0, 1.0))
    section = json.loads((tmp_path / "quick" / "bench.json").read_text())["sections"]["mine"]
    assert section["machine"]["load"] == 0.2 and section["commit"]
