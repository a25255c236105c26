"""Small problematic inputs of real users, each with its expected result.

    python benchmarks/cases.py --cases FOLDER [--only NAME] [--out FOLDER]

FOLDER holds one folder a case: `make.py`, which writes the inputs beside itself (or the inputs
themselves), and `expect.txt`, which says in words what a good program does. They are copied to
`--out` and made there. What is expected is checked here, by the commands that a user would give;
a table says case, expectation, what came, and whether that is right. What the commands said is
kept in `OUT/NAME/results/said.txt`. The exit code is 1 if one expectation is not met, or if a
folder has no check. About twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from _cases_base import Case, Check, make
from _cases_images import IMAGES
from _cases_tables import TABLES
from _rows import table

CHECKS = {**IMAGES, **TABLES}


def check_case(name: str, out: Path) -> list[Check]:
    """Write the inputs of a case, run its commands, and compare results with expectations."""
    folder = out / name
    if name not in CHECKS:
        return [
            Check((folder / "expect.txt").read_text().strip(), "there is no check of it", False)
        ]
    if (folder / "make.py").is_file():
        make(folder / "make.py")
    checks = []
    try:
        for check in CHECKS[name](Case(folder, out / "cohort")):
            print(f"{'ok   ' if check.ok else 'WRONG'} {name}: {check.expected}", flush=True)
            checks.append(check)
    except Exception as error:  # noqa: BLE001 (the other checks must still run)
        traceback.print_exc()
        checks.append(
            Check("the check comes to its end", f"{type(error).__name__}: {error}", False)
        )
    return checks


def main() -> int:
    """Run the cases and print a table; returns the exit code."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--cases", type=Path, required=True)
    words.add_argument("--only", default="", help="this case alone, or several with commas between")
    words.add_argument("--out", type=Path, help="where all is made; by default nothing is left")
    options = words.parse_args()
    names = sorted(path.parent.name for path in options.cases.glob("*/expect.txt"))
    names = [n for n in names if not options.only or n in options.only.split(",")]
    if not names:
        words.error(f"{options.cases} holds no folder with expect.txt that is asked for")
    checks: list[tuple[str, Check]] = []
    with tempfile.TemporaryDirectory(prefix="cases-") as spare:
        # Absolute, for commands run in the folder of the case; readable by other users.
        out = (options.out or Path(spare)).absolute()
        out.mkdir(parents=True, exist_ok=True)
        Path(spare).chmod(0o755)
        for path in options.cases.glob("*.py"):
            shutil.copy(path, out)
        (out / "cohort").mkdir(exist_ok=True)
        for name in names:
            shutil.rmtree(out / name, ignore_errors=True)
            shutil.copytree(options.cases / name, out / name)
            checks += [(name, check) for check in check_case(name, out)]
    rows = [(n, _cell(c.expected), _cell(c.actual), "yes" if c.ok else "NO") for n, c in checks]
    print("\n" + table(("case", "expected", "came", "ok"), rows))
    wrong = sum(not check.ok for _, check in checks)
    print(f"\n{len(names)} cases, {len(checks)} expectations, {wrong} not met")
    return int(wrong > 0)


def _cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")[:240]


if __name__ == "__main__":
    sys.exit(main())
