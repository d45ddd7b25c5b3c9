"""Print the README's tables of measurements from the files in ``results/``; a test holds the two together."""

import json
from pathlib import Path
from statistics import mean, stdev

RESULTS = Path(__file__).parent / "results"


def tables() -> list[str]:
    return [training_table(), loader_table(), integration_table()]


def training_table() -> str:
    elbo = json.loads((RESULTS / "elbo.json").read_text())
    memory = json.loads((RESULTS / "memory.json").read_text())
    few, many = memory["runs"][0], memory["runs"][-1]
    rows = [
        ("question", "dist_scvi", "scvi-tools 1.4.2", "script"),
        ("---", "---", "---", "---"),
        (
            f"held-out negative ELBO after {elbo['epochs']} epochs on `{elbo['data']}`, median of seeds",
            f"{_median(run['ours']['elbo'] for run in elbo['runs']):.1f}",
            f"{_median(run['scvi_tools']['elbo'] for run in elbo['runs']):.1f}",
            "[elbo.py](benchmarks/elbo.py)",
        ),
        (
            "the same, ratio of each pair (1 is equal)",
            ", ".join(f"{run['elbo_ratio']:.4f}" for run in elbo["runs"]),
            "1",
            "",
        ),
        ("time of that training, one thread, ratio", "1", f"{elbo['speedup_median']:.2f}", ""),
        (
            f"peak memory of training on {few['cells']:,} cells x {few['genes']:,} genes",
            f"{few['ours']['peak_mib']:,.0f} MiB",
            f"{few['scvi_tools']['peak_mib']:,.0f} MiB",
            "[memory.py](benchmarks/memory.py)",
        ),
        (
            f"the same on {many['cells']:,} cells",
            f"{many['ours']['peak_mib']:,.0f} MiB",
            f"{many['scvi_tools']['peak_mib']:,.0f} MiB",
            "",
        ),
    ]
    return _lines(rows)


def loader_table() -> str:
    loaders = json.loads((RESULTS / "loaders.json").read_text())
    programs = ("dist_scvi@packed", "dist_scvi@annbatch", "annbatch@annbatch")
    hot, cold, dense = (
        loaders["cases"][name] for name in ("csr, 1024 cells", "csr, 1024 cells, cold", "dense, 1024 cells")
    )
    ratios = [hot[f"ours over annbatch, {what}"]["median"] for what in ("own stores", "the same store")]

    def row(what: str, case: dict, key: str, form: str) -> tuple[str, ...]:
        return (what, *(format(case[program][key], form) for program in programs))

    rows = [
        ("question", "packed store", "annbatch's store", "annbatch 0.3.1 on its store"),
        ("---", "---", "---", "---"),
        row("cells per second, files in memory", hot, "cells_per_s", ",.0f"),
        ("the same, ratio to annbatch", *(f"{ratio:.1f}" for ratio in ratios), "1"),
        row("cells per second, files on disk", cold, "cells_per_s", ",.0f"),
        row("cells per second, as dense float32", dense, "cells_per_s", ",.0f"),
        row("share of what two cores can decompress", hot, "share_of_ceiling", ".0%"),
        row("CPU seconds per million cells", hot, "cpu_s_per_million_cells", ".1f"),
        row("99th percentile of next() beside a step of 5 ms, in ms", hot, "p99_next_ms_sleep", ".1f"),
        row("peak memory, MiB", hot, "peak_rss_mib", ",.0f"),
        (
            "bytes on disk per stored count",
            *(f"{loaders['bytes_per_entry'][store]:.2f}" for store in ("packed", "annbatch", "annbatch")),
        ),
    ]
    return _lines(rows)


def integration_table() -> str:
    cases = json.loads((RESULTS / "integration.json").read_text())["cases"]
    shown = {
        "elbo": "held-out negative ELBO of SCVI (lower is better)",
        "accuracy": "accuracy of transferred labels",
        "macro F1": "their macro F1",
        **{f"SCANVI {score}": f"{score} of SCANVI's latent space" for score in ("iLISI", "cLISI", "NMI", "ARI")},
    }

    def row(score: str, question: str) -> tuple[str, ...]:
        form = ".1f" if score == "elbo" else ".3f"
        values = [case["scores"][score][program] for case in cases.values() for program in ("dist_scvi", "scvi_tools")]
        return (question, *(f"{mean(seeds):{form}} ± {stdev(seeds):{form}}" for seeds in values))

    within = [[score["within_seed_noise"] for score in case["scores"].values()] for case in cases.values()]
    rows = [
        (
            "mean ± standard deviation over seeds",
            *(f"{name}{program}" for name in cases for program in (", dist_scvi", ", scvi-tools 1.4.2")),
        ),
        ("---",) * (1 + 2 * len(cases)),
        *(row(score, question) for score, question in shown.items()),
        (
            "of all scores, within seed noise",
            *(text for told in within for text in (f"{sum(told)} of {len(told)}", "")),
        ),
    ]
    return _lines(rows)


def _lines(rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _median(values: object) -> float:
    ordered = sorted(values)  # type: ignore[call-overload]
    return ordered[len(ordered) // 2]


if __name__ == "__main__":
    print("\n\n".join(tables()))
