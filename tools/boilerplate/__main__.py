"""The command ``python -m tools.boilerplate [BUNDLE ...] [--check]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .files import boilerplate

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.boilerplate", description="Write what bundles have alike.")
    parser.add_argument("bundle", type=Path, nargs="*", help="folders of bundles (default: all of bundles/)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file would change")
    options = parser.parse_args(arguments)
    bundles = options.bundle or sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
    changed = []
    for bundle in bundles:
        try:
            made = boilerplate(bundle.resolve(), ROOT / "LICENSE")
        except (OSError, ValueError, KeyError) as error:
            print(f"cannot make the files of {bundle}: {error}", file=sys.stderr)
            return 1
        for name, text in made.items():
            path = bundle / name
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                continue
            changed.append(path)
            if not options.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8", newline="\n")
    for path in changed:
        print(f"{path} is not what `python -m tools.boilerplate` makes." if options.check else f"wrote {path}")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
