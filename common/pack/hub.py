"""Upload of a pack to the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from .zoo import zoo_problems

__all__ = ["push"]


def push(folder: Path, repository: str, dry_run: bool = True) -> str:
    """Upload a packed bundle, with the hub's own settings (``HF_TOKEN``, ``HF_ENDPOINT``).

    Args:
        folder: the pack, with its card.
        repository: ``organisation/name``; created as private if it does not exist.
        dry_run: upload nothing.

    Returns:
        Lines that say what was or would be uploaded, and which rules of the model zoo the pack breaks.

    Raises:
        ValueError: the name is invalid, the pack has no card, or huggingface_hub is missing.
        OSError: the hub refuses or cannot be reached.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import validate_repo_id
    except ImportError:
        raise ValueError("huggingface_hub is missing: `pip install huggingface_hub`.") from None
    if repository.count("/") != 1:
        raise ValueError(f"--push {repository}: give organisation/name.")
    validate_repo_id(repository)
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder} has no README.md, the page for the hub: pass --card.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts: dict[str, list[int]] = {}
    for path in files:
        parts.setdefault(path.relative_to(folder).parts[0], []).append(path.stat().st_size)
    lines = [f"  {name}: {_amount(sizes)}" for name, sizes in parts.items()]
    lines += [f"the model zoo would refuse: {problem}" for problem in zoo_problems(folder)]
    total = _amount([size for sizes in parts.values() for size in sizes])
    if dry_run:
        return "\n".join([*lines, f"would upload {total} to {repository}; --no-dry-run does it."])
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    # Private first: what is public by mistake cannot be called back.
    api.create_repo(repository, private=True, exist_ok=True)
    done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload of a packed bundle")
    return "\n".join([*lines, f"uploaded {total} to {repository}, commit {done.oid}."])


def _amount(sizes: list[int]) -> str:
    return f"{len(sizes)} {'file' if len(sizes) == 1 else 'files'}, {sum(sizes):,} bytes"
