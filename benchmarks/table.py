"""Print the tables of ``benchmarks/README.md`` from the files in ``results/``; a test compares the two."""

import json
from pathlib import Path
from statistics import mean, stdev

RESULTS = Path(__file__).parent / "results"


def tables() -> list[str]:
    return [training_table(), loader_table(), integration_table(), *scaling_tables(), atlas_table()]


def headline_table() -> str:
    """Return the table of the main README: one number per question, with the file that holds it."""
    elbo, memory, loaders, integration, scaling = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("elbo", "memory", "loaders", "integration", "scaling")
    )
    hot, many = loaders["cases"]["csr, 1024 cells"], memory["runs"][-1]
    [donor, *_] = integration["cases"].values()
    accuracy = [mean(donor["scores"]["accuracy"][program]) for program in ("dist_scvi", "scvi_tools")]
    weak = scaling["training"]["2000"]["weak"]["over two workers apart"]["median"]
    rows = [
        ("question", "answer", "measured in"),
        ("---", "---", "---"),
        (
            "reading a packed store, over annbatch 0.3.1 on its own",
            f"{hot['ours over annbatch, own stores']['median']:.1f} x",
            "loaders",
        ),
        (
            "held-out negative ELBO, over scvi-tools 1.4.2 (1 is equal)",
            f"{_median(run['elbo_ratio'] for run in elbo['runs']):.4f}",
            "elbo",
        ),
        ("time of that training, scvi-tools over ours, one thread", f"{elbo['speedup_median']:.2f} x", "elbo"),
        (
            f"peak memory of training on {many['cells']:,} cells, scvi-tools",
            f"{many['ours']['peak_mib']:,.0f} MiB, {many['scvi_tools']['peak_mib']:,.0f} MiB",
            "memory",
        ),
        (
            "accuracy of transferred labels of a held-out donor, scvi-tools",
            f"{accuracy[0]:.3f}, {accuracy[1]:.3f}",
            "integration",
        ),
        ("two workers over two that do not communicate, 2,000 genes", f"{weak:.2f}", "scaling"),
    ]
    return _lines([*rows[:2], *((*row[:2], f"[{row[2]}.json](benchmarks/results/{row[2]}.json)") for row in rows[2:])])


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
            "[elbo.py](elbo.py)",
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
            "[memory.py](memory.py)",
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
    read, dropped = (loaders["cases"][name] for name in ("2000 genes, read", "2000 genes, others dropped after"))
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
        row(
            "cells per second, 2,000 of the genes (annbatch: the others dropped after)",
            dropped | read,
            "cells_per_s",
            ",.0f",
        ),
        row("share of what two cores can decompress", hot, "share_of_ceiling", ".0%"),
        row("CPU seconds per million cells", hot, "cpu_s_per_million_cells", ".1f"),
        row("99th percentile of next() beside a step of 5 ms, in ms", hot, "p99_next_ms_sleep", ".2f"),
        row("peak memory, MiB", hot, "peak_rss_mib", ",.0f"),
        (
            "bytes on disk per stored count",
            *(f"{loaders['bytes_per_entry'][store]:.2f}" for store in ("packed", "annbatch", "annbatch")),
        ),
    ]
    return _lines(rows)


def atlas_table() -> str:
    atlas = json.loads((RESULTS / "atlas.json").read_text())
    errors, disk = atlas["mean_error_of_a_probability"], atlas["on_disk"]
    size = f"{atlas['cells']:,} cells x {atlas['genes']:,} genes, {atlas['leaves']} types"
    cells = ", ".join(f"{one['cells']:,}" for one in disk)

    def both(name: str) -> str:
        return f"{atlas[f'{name}_s']:.2f} s, {atlas[f'{name}_cpu_s']:.2f} s"

    rows = [
        (f"query of a drawn atlas of {size}", "wall time, CPU time"),
        ("---", "---"),
        ("mean of 10 genes by type, from the leaves", both("expression_leaves")),
        ("the same, every cell decoded", both("expression_exact")),
        ("differential expression of two types, sketch", both("de_sketch")),
        ("differential expression of 2 x 100,000 cells, pairs", both("de_pairs")),
        ("markers of all types, sketch", both("markers")),
        ("mean error of a probability, of sketch and of pairs", f"{errors['sketch']:.4f}, {errors['pairs']:.4f}"),
        ("the same, of a plain sample of as many cells", f"{errors['plain sample of as many cells']:.4f}"),
        (f"seconds to open atlases of {cells} cells", ", ".join(f"{one['open_s']:.2f}" for one in disk)),
        ("peak memory of decoding all their cells, MiB", ", ".join(f"{one['peak_mib']:,.0f}" for one in disk)),
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

    def row(score: str, identity: str) -> tuple[str, ...]:
        form = ".1f" if score == "elbo" else ".3f"
        values = [case["scores"][score][program] for case in cases.values() for program in ("dist_scvi", "scvi_tools")]
        return (identity, *(f"{mean(seeds):{form}} ± {stdev(seeds):{form}}" for seeds in values))

    within = [[score["within_seed_noise"] for score in case["scores"].values()] for case in cases.values()]
    rows = [
        (
            "mean ± standard deviation over seeds",
            *(f"{name}{program}" for name in cases for program in (", dist_scvi", ", scvi-tools 1.4.2")),
        ),
        ("---",) * (1 + 2 * len(cases)),
        *(row(score, identity) for score, identity in shown.items()),
        (
            "of all scores, within seed noise",
            *(text for told in within for text in (f"{sum(told)} of {len(told)}", "")),
        ),
    ]
    return _lines(rows)


def scaling_tables(path: Path = RESULTS / "scaling.json") -> list[str]:
    scaling = json.loads(path.read_text())
    return [_measured_scaling(scaling), _model_check(scaling), _predicted_scaling(scaling), _plan_cost(scaling)]


def _measured_scaling(scaling: dict) -> str:
    genes = list(scaling["training"])
    of_genes = list(scaling["training"].values())
    rows = [("question", *(f"{int(n):,} genes" for n in genes)), ("---",) * (1 + len(genes))]
    for name in ("1 worker, 1,024 cells", "2 workers together, 1,024 cells", "2 workers together, 512 cells"):
        cases = [each["cases"][name] for each in of_genes]
        rows.append((f"cells per second, {name} each", *(f"{case['cells_per_s']:,}" for case in cases)))
    for kind, what in (("weak", "1,024 cells each"), ("strong", "1,024 cells in all")):
        for against in ("over two workers apart", "over twice one worker"):
            ratios = [each[kind][against]["median"] for each in of_genes]
            rows.append((f"{kind} scaling ({what}), {against}", *(f"{ratio:.2f}" for ratio in ratios)))
    apart = [each["weak"]["two workers apart over twice one worker"]["median"] for each in of_genes]
    rows.append(("two workers apart over twice one worker", *(f"{ratio:.2f}" for ratio in apart)))
    shares = [each["cases"]["2 workers together, 1,024 cells"]["shares"] for each in of_genes]
    parts = {
        "forward and backward": ("widening", "forward", "backward", "rest"),
        "all-reduce, and the slower worker": ("all_reduce",),
        "optimizer": ("optimizer",),
        "waiting for the reader": ("reading",),
    }
    for part, keys in parts.items():
        rows.append((f"share of a step of two: {part}", *(f"{sum(each[key] for key in keys):.1%}" for each in shares)))
    cpu_s = {(row["genes"], row["case"]): row["cpu_s_per_million_cells"] for row in scaling["reading"]}
    for readers in ("1 reader of all lanes", "2 readers of half of them"):
        of_readers = (cpu_s[int(n), f"{readers}, packed"] for n in genes)
        rows.append((f"CPU seconds to read a million cells, {readers}", *(f"{each:.1f}" for each in of_readers)))
    return _lines(rows)


def _model_check(scaling: dict) -> str:
    rows = [("case", "genes", "measured cells/s", "predicted", "error"), ("---",) * 5]
    for row in scaling["model"]["check"]:
        if not row["used_in_fit"]:
            rates = (f"{row[f'{what}_cells_per_s']:,}" for what in ("measured", "predicted"))
            rows.append((f"{row['case']} each", f"{row['genes']:,}", *rates, f"{row['error']:+.1%}"))
    return _lines(rows)


def _predicted_scaling(scaling: dict) -> str:
    shown = ((1, 1024), (8, 1024), (16, 1024), (64, 1024), (64, 8192))
    rows_of = {
        (row["genes"], row["network_gbit"], row["workers"], row["cells_each"]): row
        for row in scaling["model"]["predicted"]
        if row["gpu"] == "H100"
    }
    head = (f"{workers} GPU{'s' * (workers > 1)}, {cells:,} cells each" for workers, cells in shown)
    rows = [("genes", "between nodes", *head, "the last is bound by"), ("---",) * (3 + len(shown))]
    for genes, network in dict.fromkeys(key[:2] for key in rows_of):
        cells = [rows_of[genes, network, *case] for case in shown]
        rates = (f"{row['cells_per_s']:,.0f}" for row in cells)
        rows.append((f"{genes:,}", f"{network} Gb/s", *rates, cells[-1]["bound_by"].replace("_", "-")))
    return _lines(rows)


def _plan_cost(scaling: dict) -> str:
    plan = scaling["plan"]
    heads = (
        *("workers", "rows of the store", "split", "blocks", "to plan", "first seek", "later ones"),
        *("reads of a window", "held", "at most"),
    )
    rows = [
        (
            f"{case['workers']}",
            "shuffled" if case["shuffled"] else "sorted",
            "by a column" if case["by_column"] else "by the seed",
            f"{case['blocks']:,}",
            _seconds(case["plan_s"] + case["by_column"] * plan["read_column_s"]),
            *(_seconds(case[key]) for key in ("first_seek_s", "seek_s", "reads_s")),
            *(f"{case[key]:,.1f} MiB" for key in ("held_mib", "peak_mib")),
        )
        for case in plan["cases"]
    ]
    return _lines([heads, ("---",) * len(heads), *rows])


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def _lines(rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _median(values: object) -> float:
    ordered = sorted(values)  # type: ignore[call-overload]
    return ordered[len(ordered) // 2]


if __name__ == "__main__":
    print("\n\n".join(tables()))
