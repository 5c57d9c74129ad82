"""Parameters and multiply-accumulates of every TNT, three counts beside the paper's figures.

    python bench/flops.py
    python bench/flops.py --models TNT-S TNT-B --json flops.json --plot flops.png

The counts: the paper's Eqs. 14-18 completed to whole models, the FLOP formulas of the fused
operators through torch's FlopCounterMode, and fvcore on the plain PyTorch definitions. The command
fails if two of them differ by more than 0.1 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness import costs, report

TOLERANCE = 1e-3
COLUMNS = ("model", "table", "params", "paper_params", "macs", "flop_counter", "fvcore")
COLUMNS += ("fvcore_with_norms", "paper_macs", *costs.STAGES)
COLUMNS += tuple(f"{stage}_params" for stage in costs.STAGES)
PARAMETERS_NOTE = (
    "The paper's parameter counts include a frozen tensor of the authors' code that no forward "
    "reads (N D values: 0.075 M in TNT-S, 0.125 M in TNT-B)."
)


def measure(row: costs.Row) -> dict:
    """All counts of one model."""
    model = row.build()
    stages, params = costs.by_equations(model), costs.parameters(model)
    fvcore = costs.by_fvcore(model)
    return {
        "model": row.label,
        "table": row.table,
        "params": sum(params.values()),
        "paper_params": row.params_m,
        "macs": sum(stages.values()),
        "flop_counter": sum(costs.by_flop_counter(model).values()),
        "fvcore": sum(fvcore.values()) - fvcore["layer_norm"],
        "fvcore_with_norms": sum(fvcore.values()),
        "paper_macs": row.gmacs,
        **stages,
        **{f"{stage}_params": count for stage, count in params.items()},
    }


def disagreement(row: dict) -> float:
    """Largest relative difference among the three counts."""
    counts = [row["macs"], row["flop_counter"], row["fvcore"]]
    return max(counts) / min(counts) - 1


def equation_example() -> str:
    """The paper's own example of Eqs. 14-18, as its numbers give it."""
    n, m, c, d = 196, 64, 12, 768
    plain = 2 * n * d * (6 * d + n)
    ours = 2 * n * m * c * (6 * c + m) + n * m * c * d + plain
    ratio = (12 * c * c + m * c * d + 12 * d * d) / (12 * d * d)
    return (
        f"Eqs. 14-18 at n={n}, m={m}, c={c}, d={d}: a block of TNT takes {ours / 1e6:.0f} M, of a "
        f"plain transformer {plain / 1e6:.0f} M: {ours / plain:.3f} (the paper's text: about "
        f"1.09); parameters {ratio:.3f} (1.08)."
    )


def _against(value: float, paper: float | None, unit: float) -> tuple[str, str]:
    if paper is None:
        return "-", "-"
    return f"{paper:.1f}", f"{100 * (value / unit / paper - 1):+.1f} %"


def print_tables(rows: list[dict]) -> None:
    """Counts beside the paper's, then where they lie."""
    counts = []
    for row in rows:
        params, macs = row["params"], row["macs"]
        counts.append(
            [
                row["model"],
                str(row["table"] or "-"),
                f"{params / 1e6:.3f}",
                *_against(params, row["paper_params"], 1e6),
                f"{macs / 1e9:.3f}",
                f"{row['flop_counter'] / 1e9:.3f}",
                f"{row['fvcore'] / 1e9:.3f}",
                f"{row['fvcore_with_norms'] / 1e9:.3f}",
                *_against(macs, row["paper_macs"], 1e9),
            ]
        )
    heads = ["model", "Table", "params, M", "paper", "off", "GMACs: Eqs.", "FlopCounter", "fvcore"]
    report.print_rows(
        "Parameters and multiply-accumulates, one image of 224 px",
        [*heads, "+ norms", "paper", "off"],
        counts,
    )
    shares = []
    for row in rows:
        for kind, total in (("", "macs"), ("_params", "params")):
            shares.append(
                [row["model"], "parameters" if kind else "MACs"]
                + [f"{100 * row[stage + kind] / row[total]:.2f} %" for stage in costs.STAGES]
            )
    report.print_rows("Where they lie", ["model", "share of", *costs.STAGES], shares)


def write_plot(path: Path, rows: list[dict]) -> None:
    """Stacked bars of the stages' shares in GMACs."""
    with report.figure(path, (9, 1.4 + 0.36 * len(rows))) as figure:
        axis = figure.subplots()
        labels, left = [row["model"] for row in rows][::-1], [0.0] * len(rows)
        for stage in costs.STAGES:
            width = [row[stage] / 1e9 for row in rows][::-1]
            axis.barh(labels, width, left=left, label=stage)
            left = [a + b for a, b in zip(left, width)]
        paper = [row["paper_macs"] for row in rows][::-1]
        known = [(value, i) for i, value in enumerate(paper) if value is not None]
        axis.scatter(*zip(*known), marker="|", s=180, color="black", label="paper", zorder=3)
        axis.set_xlabel("multiply-accumulates of one 224 px image, billions")
        axis.grid(axis="x", alpha=0.3)
        axis.legend()


def main() -> None:
    """Count, print, write; fail on disagreement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    labels = [row.label for row in costs.ROWS]
    parser.add_argument("--models", nargs="+", choices=labels, metavar="MODEL", help=str(labels))
    report.add_outputs(parser)
    args = parser.parse_args()
    chosen = [row for row in costs.ROWS if args.models is None or row.label in args.models]
    rows = [measure(row) for row in chosen]
    print_tables(rows)
    print(equation_example())
    print(PARAMETERS_NOTE)
    report.write_outputs(args, {}, rows, COLUMNS, write_plot=lambda path: write_plot(path, rows))
    worst = max(rows, key=disagreement)
    print(f"largest disagreement of the three counts: {disagreement(worst):.1e} ({worst['model']})")
    if disagreement(worst) > TOLERANCE:
        raise SystemExit(f"{worst['model']}: the three counts differ by more than {TOLERANCE:.1%}")


if __name__ == "__main__":
    main()
