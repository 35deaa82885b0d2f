"""Run benchmarks, print tables, append to ``bench/results/<machine>.csv``.

python -m bench.run [--quick] [--only NAME]… [--model PATH] [--results DIR]
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import (
    agents,
    agents_day,
    command_line,
    conversation,
    exact_price,
    exactness,
    gateway,
    grammars,
    index,
    long_restore,
    machine,
    native_speed,
    node,
    observability,
    prefetch,
    reply_parser,
    restore,
    resume,
    room,
    servers,
    speculation,
    streaming,
    supervision,
    throughput,
    ttft,
    wake,
)
from bench.report import Figure, append_csv, table

RESULTS = Path(__file__).parent / "results"
BENCHMARKS: dict[str, Callable[[bool, Path | None], list[Figure]]] = {
    module.NAME: module.main
    for module in (
        node,
        supervision,
        index,
        ttft,
        restore,
        agents,
        agents_day,
        conversation,
        throughput,
        servers,
        gateway,
        observability,
        native_speed,
        long_restore,
        prefetch,
        streaming,
        speculation,
        grammars,
        resume,
        room,
        exactness,
        exact_price,
        reply_parser,
        wake,
        command_line,
    )
}
BUSY_ABOVE = 0.5  # of a core, before the benchmark starts anything


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen benchmarks; finished results are kept if a later one fails."""
    asked = _parser().parse_args(arguments)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    commit, name = machine.commit(), machine.machine_name()
    path = asked.results / f"{name}.csv"
    load = machine.load_average()
    print(f"{name}, commit {commit}, load average {load:.2f}")
    if load > BUSY_ABOVE and not asked.quick:
        print("this machine is busy: expect larger spreads, and compare only the ratios")
    for benchmark in asked.only or BENCHMARKS:
        figures = BENCHMARKS[benchmark](asked.quick, asked.model)
        append_csv(path, date, commit, figures)
        print(f"\n{benchmark}\n{table(figures)}", flush=True)
    print(f"\nappended to {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few runs: a check")
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--model", type=Path, help="measure this GGUF instead of ours")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV file")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
