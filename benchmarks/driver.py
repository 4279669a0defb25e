"""Timing for every benchmark: interleaved rounds, peak memory, rows on file.

A benchmark checks its *contenders* (each a name and a step to time) against each other and passes them here. It gets a
`Row` for each, with the 20th, 50th and 80th percentile of its rounds and its peak memory. Rows go to an append-only
CSV.

Rounds are interleaved: each round runs every contender once, in random order, so that a machine that slows down slows
all of them. Ratios are between medians of one run.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports a missing GPU as an error

import torch

from benchmarks.environment import Environment

RESULTS = Path(__file__).parent / "results"
OUT_OF_MEMORY = "out of memory"
Step = Callable[[], object]


class BenchmarkError(RuntimeError):
    """Contenders disagree, a comparison fails, or a file of rows cannot be used. No figure may be reported."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured contender; one line of a CSV in ``results/``."""

    benchmark: str
    case: str  # the computation and its setting
    implementation: str  # the contender
    shape: str  # "B=180 D=1024"
    dtype: str
    status: str = "ok"  # or "out of memory"
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    rounds: int = 0
    clock: str = ""  # "process CPU time" or "wall"
    peak_mb: float | None = None  # peak in 2**20 bytes, above the memory in use before the step
    device: str = ""
    threads: int = 0
    backend: str = ""
    python: str = ""
    torch: str = ""
    triton: str = ""
    cuda: str = ""
    driver: str = ""
    tf32: str = ""
    commit: str = ""
    date: str = ""  # UTC; rows of one run share it
    load: float | None = None  # 1-minute load average at the start; if it is high, wall times are not reliable

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that are equal in two measurements of the same thing."""
        setting = (self.benchmark, self.case, self.implementation, self.shape, self.dtype, self.clock)
        return (*setting, self.device, str(self.threads), self.backend, self.tf32)


@dataclass
class Samples:
    """The rounds of one contender, in seconds."""

    seconds: list[float] = field(default_factory=list)
    out_of_memory: bool = False
    peak_bytes: int | None = None

    def quantile(self, share: float) -> float:
        """The quantile, linear between order statistics, in milliseconds."""
        ordered = sorted(self.seconds)
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return 1e3 * (ordered[low] + (place - low) * (ordered[high] - ordered[low]))


# --- the clock ------------------------------------------------------------------------------------------------


def clock_name(device: torch.device) -> str:
    """Process CPU time for one CPU thread, because other programs hardly change it; wall time otherwise."""
    return "process CPU time" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def time_once(step: Step, device: torch.device) -> float:
    """Seconds of one step, on the clock of `clock_name`."""
    clock = time.process_time if clock_name(device) == "process CPU time" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begin


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on either kind of device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def available_bytes() -> int:
    """Main memory that this process can still allocate: the machine's, or its control group's if that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, IndexError):
        free = 1024 * int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])
    with contextlib.suppress(OSError, ValueError):  # absent, or "max"
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(free, 0)


@contextlib.contextmanager
def memory_limit(extra_bytes: int | None = None) -> Iterator[None]:
    """Make an allocation that cannot fit raise at once.

    Linux allocates more address space than there is memory, and later kills the process that uses it. With a limit on
    the address space, the baseline that needs 37 GB raises an error and becomes a row "out of memory".
    """
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc: the platform's own allocator decides
        yield
        return
    import resource  # POSIX only, like /proc

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + (available_bytes() if extra_bytes is None else extra_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def release(device: torch.device) -> None:
    """Release cached memory before the next contender."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_bytes(step: Step, device: torch.device) -> int:
    """Bytes that PyTorch's allocator held at the peak of one step, above what it held before.

    Exact and repeatable, because it counts allocations. Memory that libraries take outside PyTorch's allocator (a few
    hundred kB of packing buffers in BLAS, the CUDA context) is not included.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        if event["args"]["Device Type"] == 0:
            live += event["args"]["Bytes"]
            peak = max(peak, live)
    return peak


def measure(
    contenders: Mapping[str, Step],
    device: torch.device,
    *,
    rounds: int,
    seed: int = 0,
    memory: bool = True,
    warm_up: bool = True,
    min_seconds: float = 0.0,
    report: Callable[[str], object] = str,  # receives progress messages; `str` discards them
    bounds: Mapping[str, int] | None = None,
    done: Callable[[str, Samples], object] | None = None,
) -> dict[str, Samples]:
    """Time all contenders in ``rounds`` interleaved rounds, after one that warms up and one that counts memory.

    A contender that runs out of memory is dropped, with ``out_of_memory`` set; the others continue.
    With ``min_seconds`` a short step is repeated within a round until it fills that time. Without ``warm_up``, for
    steps of seconds on a CPU, the round that counts memory is also the warm-up. ``bounds`` limits the rounds of some
    contenders; ``done`` is called with each contender after its last round.
    """
    results = {name: Samples() for name in contenders}
    repeats = dict.fromkeys(contenders, 1)
    order = random.Random(seed)

    def attempt(name: str, action: Callable[[], None]) -> None:
        try:
            with memory_limit() if device.type == "cpu" else contextlib.nullcontext():
                action()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            results[name].out_of_memory = True
            error.__traceback__ = None  # its frames keep tensors alive
        if results[name].out_of_memory:
            release(device)

    def prepare(name: str) -> None:
        if warm_up or not memory:
            contenders[name]()  # builds kernels, plans and caches
        if memory:
            results[name].peak_bytes = peak_bytes(contenders[name], device)
        if min_seconds:
            repeats[name] = max(1, round(min_seconds / max(time_once(contenders[name], device), 1e-6)))

    def one_round(name: str) -> None:
        def repeated() -> None:
            for _ in range(repeats[name]):
                contenders[name]()

        results[name].seconds.append(time_once(repeated, device) / repeats[name])

    last = {name: min(rounds, (bounds or {}).get(name, rounds)) for name in contenders}
    for name in contenders:
        report(f"warming up {name}")
        attempt(name, partial(prepare, name))
        if done and results[name].out_of_memory:
            done(name, results[name])
    for number in range(rounds):
        alive = [name for name in contenders if not results[name].out_of_memory and number < last[name]]
        order.shuffle(alive)
        for name in alive:
            report(f"round {number + 1} of {rounds}: {name}")
            attempt(name, partial(one_round, name))
            if done and (number + 1 == last[name] or results[name].out_of_memory):
                done(name, results[name])
    return results


# --- rows -----------------------------------------------------------------------------------------------------


def make_row(
    samples: Samples,
    environment: Environment,
    *,
    benchmark: str,
    case: str,
    implementation: str,
    shape: str,
    dtype: str,
) -> Row:
    """The row of one contender."""
    lost = samples.out_of_memory or not samples.seconds
    return Row(
        benchmark=benchmark,
        case=case,
        implementation=implementation,
        shape=shape,
        dtype=dtype,
        status=OUT_OF_MEMORY if lost else "ok",
        p20_ms=None if lost else round(samples.quantile(0.2), 4),
        p50_ms=None if lost else round(samples.quantile(0.5), 4),
        p80_ms=None if lost else round(samples.quantile(0.8), 4),
        rounds=len(samples.seconds),
        peak_mb=None if samples.peak_bytes is None or lost else round(samples.peak_bytes / 2**20, 3),
        **asdict(environment),
    )


def append_csv(path: Path, rows: Sequence[Row]) -> None:
    """Add rows at the end of a CSV. Raises for a file with other columns, without changing it."""
    names = [column.name for column in fields(Row)]
    exists = path.exists() and path.stat().st_size > 0
    if exists:
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if header != names:
            raise BenchmarkError(
                f"`{path.name}` must hold the columns {', '.join(names)}; it holds {', '.join(header)}. "
                "Rows are never rewritten: give another file with --csv."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if not exists:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV that `append_csv` wrote, or of a JSON that `write_json` wrote."""
    try:
        if path.suffix == ".json":
            records = json.loads(path.read_text())["rows"]
        else:
            with path.open(newline="") as file:
                records = list(csv.DictReader(file))
        return [_parse_row(record) for record in records]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(
            f"rows are read from a .csv or .json that a benchmark here wrote; `{path}` gave {error!r}. "
            "Check the path, or write a new file with --csv or --json."
        ) from error


def _parse_row(record: Mapping[str, object]) -> Row:
    values: dict[str, object] = {}
    for column in fields(Row):
        text = record[column.name]
        empty = text is None or (text == "" and "None" in str(column.type))
        convert = {"str": str, "int": int, "float | None": float}[str(column.type)]
        values[column.name] = None if empty else convert(text)
    return Row(**values)


def write_json(path: Path, rows: Sequence[Row], **extra: object) -> None:
    """Write one run, with its other results, to its own file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**extra, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def compare(rows: Sequence[Row], base: Sequence[Row]) -> list[tuple[Row, float]]:
    """Each row with its median divided by that of the last matching row in ``base``; rows without one are left out."""
    last = {row.key: row for row in base if row.p50_ms}
    pairs = [(row, row.p50_ms / (last[row.key].p50_ms or 1)) for row in rows if row.p50_ms and row.key in last]
    if not pairs:
        raise BenchmarkError(
            "--compare needs rows of the same case, shape, device, threads and clock; the base has none. "
            "Measure the base on this machine, with the same options."
        )
    return pairs


def median_ratio(numerator: Samples, denominator: Samples) -> float | None:
    """Median over median, or None if either ran out of memory."""
    if numerator.out_of_memory or denominator.out_of_memory:
        return None
    return statistics.median(numerator.seconds) / statistics.median(denominator.seconds)
