"""Remarks about files; what is true of many files is said once."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_NUMBER = re.compile(r"\d+(?:[.,x]\d+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A reason and what to do about it, of the files `names` in one of the recipe's folders.

    No names: it is about the folder. `details` has an entry for each name where the reason says `…`, else
    none.
    """

    folder: str
    reason: str
    hint: str = ""
    names: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


def grouped(remarks: Iterable[Remark]) -> tuple[Remark, ...]:
    """Make one remark of those that differ in nothing but names and numbers; the most frequent come first.

    What differs among the reasons becomes `…`, and the details.
    """
    alike = defaultdict(list)
    for remark in remarks:
        reason = _NUMBER.sub("0", remark.reason)
        alike[remark.folder, reason, remark.hint, bool(remark.names)].append(remark)
    return tuple(sorted(map(_merged, alike.values()), key=lambda group: -len(group.names)))


def _merged(remarks: Sequence[Remark]) -> Remark:
    first = remarks[0]
    names = tuple(name for remark in remarks for name in remark.names)
    rows = [remark.reason.split(" ") for remark in remarks]  # of one length: only digits differ
    varies = [len(set(column)) > 1 for column in zip(*rows, strict=True)]
    if not any(varies):
        details = tuple(detail for remark in remarks for detail in remark.details)
        return Remark(folder=first.folder, reason=first.reason, hint=first.hint, names=names, details=details)
    reason = " ".join(
        _NUMBER.sub("…", word) if differs else word for word, differs in zip(rows[0], varies, strict=True)
    )
    details = tuple(
        ", ".join(word.strip("(,;:)") for word, differs in zip(row, varies, strict=True) if differs)
        for row, remark in zip(rows, remarks, strict=True)
        for _name in remark.names
    )
    return Remark(folder=first.folder, reason=reason, hint=first.hint, names=names, details=details)
