"""The command ``python -m common.pack``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..overlays import parse_files, parse_overrides, parse_value
from .archive import pack
from .card import read_scores
from .hub import push


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m common.pack", description="Make a bundle self-contained.")
    parser.add_argument("bundle", type=Path, help="folder of the bundle, or its name")
    parser.add_argument("--output", type=Path, default=Path("packed"), help="folder to write to (default: packed)")
    parser.add_argument(
        "--weights",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="files for models/, or the name of an encoder",
    )
    parser.add_argument(
        "--weights-url",
        nargs="+",
        default=[],
        metavar="FILE=URL",
        help="files for models/ that are not packed: large_files.yml lists address and SHA-256",
    )
    parser.add_argument("--force", action="store_true", help="replace the output of an earlier call")
    parser.add_argument(
        "--config_file",
        nargs="+",
        default=[],
        metavar="FILE",
        help="overlays to write into the base files, for programs that read only one file, such as MONAI Label",
    )
    parser.add_argument(
        "--override", nargs="+", default=[], metavar="ID=VALUE", help="values by id, after the overlays"
    )
    parser.add_argument(
        "--accept_preparation",
        default=False,
        type=parse_value,
        metavar="True",
        help="accept a model trained on images prepared in another way than the pack's, here and in the pack",
    )
    parser.add_argument(
        "--scores", type=Path, metavar="CSV", help="scores of the weights, from evaluate.json or common.score"
    )
    parser.add_argument("--scores-on", metavar="TEXT", help="the data that --scores was measured on, in words")
    parser.add_argument("--card", action="store_true", help="write README.md, the pack's page on the Hugging Face hub")
    parser.add_argument("--license", metavar="ID", help="licence of the weights for the card, such as cc-by-4.0")
    parser.add_argument("--push", metavar="ORG/NAME", help="list what would be uploaded to that repository on the hub")
    parser.add_argument("--no-dry-run", action="store_true", help="with --push: upload it, private at first")
    parser.add_argument("--name", help="name of the packed bundle (default: that of the folder)")
    options = parser.parse_args(arguments)
    urls = dict(item.partition("=")[::2] for item in options.weights_url)
    if not all(urls.values()):
        parser.error("--weights-url wants FILE=URL")
    if (options.scores is None) != (options.scores_on is None):
        parser.error("--scores and --scores-on belong together: numbers, and what they were measured on")
    if options.no_dry_run and not options.push:
        parser.error("--no-dry-run belongs to --push")
    try:
        scores = read_scores(options.scores, options.scores_on) if options.scores else None
        folder, archive = pack(
            options.bundle,
            options.output,
            options.weights,
            urls,
            options.force,
            [Path(name) for name in parse_files(options.config_file)],
            parse_overrides(options.override)
            | ({"accept_preparation": True} if options.accept_preparation is True else {}),
            options.name,
            scores,
            options.card,
            options.license,
        )
    except (OSError, ValueError) as error:
        print(f"cannot pack {options.bundle}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {folder} and {archive}")
    if options.push:
        try:
            print(push(folder, options.push, not options.no_dry_run))
        except (OSError, ValueError) as error:
            print(f"cannot push {folder}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
