"""Files from the Hugging Face hub by name, ``hf://org/name/file@revision``, through its client and cache.

The environment sets the client: ``HF_ENDPOINT`` (another hub), ``HF_HUB_CACHE`` (where files stay),
``HF_HUB_OFFLINE=1`` (no network), ``HF_TOKEN`` or ``hf auth login`` (for gated repositories). A broken transfer resumes
where it stopped.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from ..files import file_digest
from ..volumes import first_line
from .source import HUB_FILES, HUB_SETTINGS

__all__ = ["HubFile", "fetch", "is_hub_name"]

NAME = re.compile(r"^hf://([\w.-]+/[\w.-]+)/([^@#]+?)(?:@([^@#]+))?(?:#sha256=([0-9a-f]{64}))?$")


class HubFile(NamedTuple):
    """A file of the hub in the local cache.

    Attributes:
        path: of the file in the cache.
        origin: for records: the requested ``name``, ``commit``, ``sha256`` and ``licence`` (None if not stated).
    """

    path: Path
    origin: dict[str, Any]


def is_hub_name(name: str | os.PathLike) -> bool:
    """Whether this is the name of a file on the hub, not a path."""
    return str(name).startswith("hf:/")


def fetch(name: str) -> HubFile:
    """Get the file of this name from the cache or, if it is not there, from the hub.

    Args:
        name: ``hf://org/name/file@revision``; ``revision`` is a branch, tag or commit, by default ``main``. An optional
            ``#sha256=`` at the end gives the digest that the file must have.

    Raises:
        FileNotFoundError: there is no such repository, file or revision, or it is not in the cache and the network is
            off.
        PermissionError: the repository is gated; accept its terms on its page first.
        ConnectionError: the hub cannot be reached, or the transfer broke off.
        ValueError: the name is invalid, or the file has another digest than the hub or the name states.
    """
    from huggingface_hub import errors, hf_hub_download

    match = NAME.match(re.sub("^hf:/+", "hf://", name))  # a path has lost a slash
    if match is None:
        raise ValueError(f"{name} is not a name of a file on the hub: write hf://org/name/file@revision.")
    repository, file, revision, wanted = match.groups()
    settings: dict[str, Any] = {
        "revision": revision,
        "endpoint": os.environ.get("HF_ENDPOINT") or None,
        "cache_dir": os.environ.get("HF_HUB_CACHE") or None,
        "local_files_only": os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"),
    }
    try:
        path = Path(hf_hub_download(repository, file, **settings))
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name} is behind terms of use: accept them on the page of {repository}, then `hf auth login` or set "
            "HF_TOKEN."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if settings["local_files_only"]:
            raise FileNotFoundError(
                f"{name} is not in the cache, and HF_HUB_OFFLINE forbids a download: unset it, or fetch the file "
                "elsewhere first."
            ) from error
        raise ConnectionError(f"{name} is not in the cache, and the hub cannot be reached: try again.") from error
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        what = {"EntryNotFoundError": "file", "RevisionNotFoundError": "revision"}
        kind = next((what[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in what), "repository")
        raise FileNotFoundError(f"{name}: the hub has no such {kind}, or it is private (set HF_TOKEN).") from error
    except Exception as error:  # the client passes on what its transport raises
        raise ConnectionError(f"{name} could not be fetched ({first_line(error)}): try again.") from error
    digest, stored = file_digest(path), path.resolve().name
    # Large files lie in the cache under the digest that the hub states for them.
    if re.fullmatch("[0-9a-f]{64}", stored) and stored != digest:
        path.resolve().unlink(missing_ok=True)
        raise ValueError(
            f"{name} is damaged (its SHA-256 is {digest}, but the hub states {stored}): it was removed from the "
            "cache, fetch it again."
        )
    if wanted not in (None, digest):
        raise ValueError(
            f"{name} asks for another file than the hub has (its SHA-256 is {digest}): correct the digest, or name "
            "the revision that has it."
        )
    for beside in HUB_SETTINGS if path.name in HUB_FILES else ():
        _beside(repository, str(Path(file).with_name(beside)), settings)
    found = re.search(r"/snapshots/([^/]+)/", path.as_posix())
    origin = {"name": name, "commit": found and found[1], "sha256": digest, "licence": _licence(repository, settings)}
    return HubFile(path, origin)


def _beside(repository: str, file: str, settings: dict[str, Any]) -> Path | None:
    """A companion file, or None if the hub does not have it; the weights are already there."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, **settings))
    except Exception:
        return None


def _licence(repository: str, settings: dict[str, Any]) -> str | None:
    """The licence in the head of a repository's card; None if there is none."""
    card = _beside(repository, "README.md", settings)
    head = card and re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    fields = dict(re.findall(r"^(license|license_name):\s*(\S+)", head[1], re.MULTILINE)) if head else {}
    return fields.get("license_name") or fields.get("license")
