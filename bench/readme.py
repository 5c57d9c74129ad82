"""Write README's performance section from the committed results.

    python bench/readme.py            rewrite the section
    python bench/readme.py --check    fail if the section is not what the results say

Every bench/results/throughput-*.json becomes one paragraph that names its machine and one table.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START = "<!-- results: written by the benches from bench/results -->\n"
END = "<!-- end of results -->"


def _table(rows: list[dict]) -> list[str]:
    lines = [
        "| model | batch | median, ms | 20-80 %, ms | images/s | times timm eager | peak MB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['batch']} | {row['median_ms']:.1f} "
            f"| {row['low_ms']:.1f}-{row['high_ms']:.1f} | {row['images_per_s']:.1f} "
            f"| {row['vs_baseline']:.2f} | {row['peak_mb']:.0f} |"
        )
    return lines


def section(paths: list[Path]) -> str:
    """Markdown of the given result files."""
    lines = []
    for path in paths:
        result = json.loads(path.read_text())
        machine, rows = result["machine"], result["rows"]
        runs = min(row["runs"] for row in rows)
        lines += [
            f"{machine['device']}, {machine['threads']} threads, PyTorch {machine['torch']}, timm "
            f"{machine['timm']}, commit {machine['commit']}; contestants interleaved in one "
            f"process, at least {runs} runs each, random weights, heap "
            f"{'pinned' if machine['heap_pinned'] else 'not pinned'} "
            f"([{path.name}](bench/results/{path.name})).",
            "",
        ]
        for task, dtype, size in dict.fromkeys(
            (row["task"], row["dtype"], row["img_size"]) for row in rows
        ):
            members = [
                row
                for row in rows
                if (row["task"], row["dtype"], row["img_size"]) == (task, dtype, size)
            ]
            name = dtype if dtype == "float32" else f"{dtype} autocast"
            lines += [f"**{task}, {name}, {size} px**", "", *_table(members), ""]
    return "\n".join(lines)


def main() -> None:
    """Rewrite or check README.md; its markers must be there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    pattern = re.escape(START) + r".*?" + re.escape(END)
    if not re.search(pattern, text, re.DOTALL):
        raise SystemExit(f"{readme.name}: the markers of the results section are missing")
    body = section(sorted((ROOT / "bench" / "results").glob("throughput-*.json")))
    fresh = re.sub(pattern, lambda _: START + body + END, text, flags=re.DOTALL)
    if args.check and fresh != text:
        raise SystemExit("README.md differs from bench/results: run `python bench/readme.py`")
    readme.write_text(fresh)


if __name__ == "__main__":
    main()
