"""Format the bundles' JSON files (``python -m tools.format_json``) as ``common`` writes its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.json_files import read_json, to_json

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.format_json", description="Format JSON files.")
    parser.add_argument("file", type=Path, nargs="*", help="default: all of bundles/ and tools/")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file would change")
    options = parser.parse_args(arguments)
    all_files = (path for folder in ("bundles", "tools") for path in sorted((ROOT / folder).rglob("*.json")))
    changed = 0
    for path in options.file or all_files:
        try:
            text = to_json(read_json(path))
            if path.read_text(encoding="utf-8") == text:
                continue
            if not options.check:
                path.write_text(text, encoding="utf-8", newline="\n")
        except (OSError, ValueError) as error:
            print(f"cannot format {path}: {error}", file=sys.stderr)
            return 1
        changed += 1
        print(f"{path} is not as `python -m tools.format_json` writes it." if options.check else f"wrote {path}")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
