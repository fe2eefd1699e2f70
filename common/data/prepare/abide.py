from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .files import item, number, scans, some
from .visits import Visits

logger = logging.getLogger(__name__)

_CONTROL = 2  # of DX_GROUP; 1 is autism
_LONGITUDINAL = "_long"  # ends the names of sites with further visits, in lower case


def collect_abide(source: Path, min_age: float = 13, controls: bool = True) -> list[dict[str, Any]]:
    """ABIDE I and II in BIDS, as the International Neuroimaging Data-sharing Initiative publishes them: one folder per
    site, each with `sub-*/[ses-*/]anat/*_T1w.nii.gz` and a `participants.tsv` with AGE_AT_SCAN and DX_GROUP.

    A subject is `SITE/sub-NUMBER`. A number is one person at all sites if one of these is a longitudinal collection
    (its name ends in `_Long`, such as `UCLA_Long`), since it may hold later visits of the others' subjects; whether
    published collections share numbers was not verified. Otherwise equal numbers at two sites are two people, with a
    warning. If a participant has several visits, `session_id` in the table, or `sub-*/sub-*_sessions.tsv`, tells their
    rows apart.

    By default it takes the subjects of Jun et al. (Medical Transformer, section 4.1.1): healthy and 13 years or older.

    Args:
        source: folder that holds the sites, at any depth.
        min_age: in years; subjects without an age are left out unless it is 0. The tables' negative ages, such as
            -9999, stand for none.
        controls: False also takes subjects with autism.

    Raises:
        DatalistError: a participant has several rows that differ in age or group, without a session.
    """
    found: list[tuple[Path, Path]] = []  # a site and one of its images
    for site in sorted({path.parent for path in source.rglob("participants.tsv")}):
        images = scans(site, "sub-*/anat/*_T1w") + scans(site, "sub-*/ses-*/anat/*_T1w")
        found += [(site, image) for image in sorted(images)]
    # of all images: the choice of some must not change whom one is of
    subjects = _subjects((site.name, _folder(site, image)) for site, image in found)
    visits = {site: Visits(site, ("age_at_scan", "dx_group"), _digits) for site in dict.fromkeys(x for x, _ in found)}
    items = []
    for site, image in found:
        age = number(visits[site].cell(image, "age_at_scan"))
        age = None if age is not None and age < 0 else age
        if controls and number(visits[site].cell(image, "dx_group")) != _CONTROL:
            continue
        if min_age and (age is None or age < min_age):
            continue
        items.append(item(image, subject=subjects[site.name, _folder(site, image)], age=age))
    return items


def _folder(site: Path, image: Path) -> str:
    return image.relative_to(site).parts[0]


def _subjects(scanned: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Names of the subjects by site and folder, `SITE/sub-NUMBER` with the site of their first visit."""
    of_number: dict[str, list[tuple[str, str]]] = {}
    for one in dict.fromkeys(scanned):
        of_number.setdefault(_digits(one[1]), []).append(one)
    names = {one: "/".join(one) for several in of_number.values() for one in several}
    apart = []
    for digits, several in of_number.items():
        sites = sorted(several, key=lambda one: one[0].lower().endswith(_LONGITUDINAL))
        if sites[-1][0].lower().endswith(_LONGITUDINAL):
            names |= dict.fromkeys(several, "/".join(sites[0]))
        elif len({site for site, _ in several}) > 1:
            apart.append(f"{digits} ({', '.join(site for site, _ in several)})")
    if apart:
        logger.warning(
            "Numbers of subjects occur at several sites, and each counts as several people: %s. If they are one "
            "person, give --subject 'sub-0*([0-9]+)'.",
            some(apart),
        )
    return names


def _digits(name: str) -> str:
    """A participant's number without `sub-` and leading zeros, which the tables leave out."""
    return name.removeprefix("sub-").lstrip("0")
