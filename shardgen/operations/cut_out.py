"""Cut out: a mask file beside each photograph that has none, before a run is planned.

A mask is a file like any other from then on: the plan holds its sha256, and no sample's bytes depend on the
network that drew it.
"""

from __future__ import annotations

import errno
import hashlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardgen.domain.remarks import Remark, grouped
from shardgen.domain.sample import spread_samples
from shardgen.errors import (
    ComposeFailed,
    InputMissing,
    MachineUnfit,
    SampleError,
    SourcesRefused,
    StorageFailed,
    WeightsRefused,
)
from shardgen.imaging.codec import Photograph, decode
from shardgen.imaging.masks import cut_out
from shardgen.imaging.options import MaskMode
from shardgen.imaging.own_masks import Marks, Verdict, has_useful_alpha, judge, own_mask_file, read_marks
from shardgen.imaging.saliency import SaliencyNetwork
from shardgen.imaging.sheet import cut_out_cell, cut_out_sheet
from shardgen.machine.cores import usable_cores
from shardgen.machine.trial import main_of_trial, try_to_read
from shardgen.operations.preview import refuse_picture
from shardgen.sources.folder import (
    SUFFIXES,
    Listing,
    MaskNames,
    by_name,
    is_mask,
    list_folder,
    pair_masks,
    read_file,
    stem_of,
)
from shardgen.storage.atomic import (
    abandoned_files,
    give_name,
    publish_file,
    remove_abandoned,
    rename_durably,
    staged_beside,
)
from shardgen.storage.bounded import Irregular, how_to_read, read_regular
from shardgen.storage.fetch import fetch
from shardgen.storage.files import DiskFiles, is_file, is_folder, is_link, is_there, storing
from shardgen.storage.released import OnDownload, Released, cached_path

U2NETP = Released(
    name="u2netp",
    url="https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2netp.onnx",
    size_bytes=4_574_861,
    sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
    otherwise="say where you put it: shardgen cut-out FOLDER --model u2netp.onnx",
)
_MODEL_BYTES = 1 << 30  # u2net.onnx, the largest of the family, has 176 million
_MASK_SUFFIX = ".mask.png"
_SHEET_CELLS = 120
_FETCH = "shardgen weights fetch u2netp"


class Kind(StrEnum):
    """What became of a photograph."""

    WRITTEN = "written"
    EARLIER = "earlier"
    THEIRS = "theirs"
    ALPHA = "alpha"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one photograph; `verdict` is None where the mask is not ours.

    `is_outdated`: its mask was made earlier, of another file with that name.
    """

    name: str
    kind: Kind
    verdict: Verdict | None = None
    is_outdated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOuts:
    """Every photograph's outcome in the order of names, and what is wrong with the others."""

    folder: Path
    outcomes: tuple[Outcome, ...]
    problems: tuple[Remark, ...]


class Concern(Enum):
    """Why a person should look: the reason, what to do, and what stands on a sheet."""

    EMPTY = (
        "no subject found, so no mask was written",
        "draw NAME.mask.png yourself, or take the photograph out",
        "no subject found, no mask",
    )
    FULL = (
        "the mask covers nearly the whole picture",
        "look at it, and draw a better one if need be",
        "nearly the whole picture",
    )
    UNCERTAIN = (
        "the mask is uncertain, or covers several things",
        "look at it closely, and draw a better one if need be",
        "uncertain, or several things",
    )
    OUTDATED = (
        "the mask was made from an earlier photograph with this name",
        "run cut-out on that photograph alone, or add --overwrite",
        "mask of an earlier photograph",
    )

    def __init__(self, words: str, advice: str, remark: str) -> None:
        self.words, self.advice, self.remark = words, advice, remark


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOutRequest:
    """`path` is a folder, or one photograph, whose mask is then made again if it is shardgen's own.

    `model` is None for the released one, which is fetched if need be. `overwrite` makes shardgen's own masks
    again; `sheet` is a PNG that will be drawn.
    """

    path: Path
    model: Path | None = None
    overwrite: bool = False
    sheet: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOutEvents:
    """`on_file` is told the name of each photograph that is done, and how many there are."""

    on_file: Callable[[str, int], None] = field(default=lambda _name, _of: None)
    on_download: OnDownload = field(default=lambda _done, _total: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A decoded photograph that needs a mask; with `replaces` it has one of ours."""

    photo: Photograph
    sha256: str
    replaces: bool


def cut_out_photographs(
    request: CutOutRequest, *, events: CutOutEvents | None = None, files: DiskFiles | None = None
) -> CutOuts:
    """Write `NAME.mask.png` beside each photograph that has neither a useful alpha channel nor a mask file.

    Each mask is durable before the next one is made; after a stop, the same call continues. A mask that is
    not shardgen's own is never replaced.

    Raises InputMissing, WeightsRefused, DownloadFailed, StorageFailed; SourcesRefused for one photograph by
    name whose mask is the user's.
    """
    events, files = events or CutOutEvents(), files or DiskFiles()
    folder, listing, overwrite = _listed(request)
    if request.sheet is not None:
        refuse_picture(request.sheet, folder, option="--sheet")
    _remove_leftovers(folder, listing)
    mask_names = pair_masks(listing.photographs, listing.masks)
    problems = list(_name_problems(folder, listing, mask_names))
    named = {name for problem in problems for name in problem.names} | {*mask_names.misnamed.values()}
    names = [name for name in listing.photographs if name not in named]
    outcomes: list[Outcome] = []
    network: SaliencyNetwork | None = None
    for name, seen in _looked_at(folder, mask_names, names, overwrite=overwrite):
        if isinstance(seen, _Ready):
            network = network or _open_model(request.model, events.on_download)
            seen = _cut(folder, name, seen, network, files)  # noqa: PLW2901
        if isinstance(seen, Outcome):
            outcomes.append(seen)
        else:
            problems.append(seen)
        events.on_file(name, len(names))
    if not is_folder(request.path) and any(one.kind is Kind.THEIRS for one in outcomes):
        raise SourcesRefused(
            f"{request.path}: it has a mask that shardgen did not make, or that was changed since",
            hint="move that mask away; it is never replaced",
        )
    return CutOuts(folder=folder, outcomes=tuple(outcomes), problems=grouped(problems))


def draw_sheet(done: CutOuts, path: Path) -> int:
    """Draw photographs beside their cut-outs as PNG, replacing an earlier one; how many were drawn.

    At most 120: first those that need a look, then others spread over the rest. Those with masks of the
    user's are left out; where nothing else is there, no file is written.
    """
    shown = [one for one in done.outcomes if one.verdict is not None]
    flagged = [one for one in shown if _concern(one)][:_SHEET_CELLS]
    plain = [one for one in shown if not _concern(one)]
    if len(flagged) < _SHEET_CELLS and plain:
        flagged += [plain[index] for index in spread_samples(len(plain), _SHEET_CELLS - len(flagged))]
    cells = [_drawn(done.folder, one) for one in sorted(flagged, key=done.outcomes.index)]
    if cells:
        with storing(path):
            path.unlink(missing_ok=True)
        publish_file(path, cut_out_sheet(cells))
    return len(cells)


def concerns(done: CutOuts) -> dict[Concern, list[str]]:
    """The names of photographs that need a look, by the reason."""
    found: dict[Concern, list[str]] = {concern: [] for concern in Concern}
    for one in done.outcomes:
        if concern := _concern(one):
            found[concern].append(one.name)
    return {concern: names for concern, names in found.items() if names}


def warnings(done: CutOuts) -> list[Remark]:
    """The same as remarks, with what to do about it."""
    return [
        Remark(folder=str(done.folder), names=tuple(names), reason=concern.words, hint=concern.advice)
        for concern, names in concerns(done).items()
    ]


def check_model(path: Path) -> dict[str, str | int]:
    """What `weights check` says of a network for cut-outs; raises InputMissing, WeightsRefused."""
    network = _read_model(path)
    return {
        "network": "U²-Net, for shardgen cut-out",
        "released as": U2NETP.name if network.sha256 == U2NETP.sha256 else "unknown",
        "bytes": path.stat().st_size,
        "sha256": network.sha256,
    }


def fetch_model(on_download: OnDownload) -> str:
    """Fetch the released network into the cache, unless it is there; its sha256."""
    return _open_model(None, on_download).sha256


def _listed(request: CutOutRequest) -> tuple[Path, Listing, bool]:
    """The folder, what lies in it, and whether to make our own masks again."""
    path = request.path
    if not is_folder(path):
        return path.parent, _one_photograph(path), True
    if is_file(path / "shardgen.toml"):
        raise InputMissing(
            f"{path}: a run directory, not a folder of photographs",
            hint="name the folder that its shardgen.toml calls foregrounds",
        )
    listing = list_folder(path, what="photographs", with_masks=True)
    if not listing.photographs and not listing.unnameable:
        raise InputMissing(
            f"{path}: no photographs in this folder",
            hint="put JPEG, PNG, WebP, BMP or TIFF files into it, or give another folder",
        )
    return path, listing, request.overwrite


def _one_photograph(path: Path) -> Listing:
    """A photograph, others of its name, and the masks beside it, as the listing of a folder has them."""
    if not is_there(path):
        raise InputMissing(f"{path}: no such folder or photograph", hint="check the name")
    if path.suffix.lower() not in SUFFIXES or not is_file(path):
        raise InputMissing(
            f"{path}: not a photograph by its name", hint="name a folder, or a JPEG, PNG, WebP, BMP or TIFF"
        )
    if is_mask(path.name):
        raise InputMissing(f"{path}: a mask file", hint="name the photograph that it belongs to")
    with storing(path.parent):
        beside = [one.name for one in path.parent.iterdir() if one.suffix.lower() in SUFFIXES]
    photographs = tuple(sorted(name for name in beside if not is_mask(name)))
    return Listing(
        photographs=next(same for same in by_name(photographs, stem_of).values() if path.name in same),
        masks=tuple(sorted(filter(is_mask, beside))),
        others=(),
        unnameable=(),
        left_over={},
    )


def _name_problems(folder: Path, listing: Listing, mask_names: MaskNames) -> Iterator[Remark]:
    """What the names alone show: photographs that cannot have a mask of their own."""
    for name in listing.unnameable:
        yield _problem(folder, name, "the file's name is not UTF-8", hint="rename it")
    for name, beside in mask_names.misnamed.items():
        yield _problem(
            folder,
            name,
            "looks like a mask, but masks are named NAME.mask.png",
            hint="rename it NAME.mask.png; if it is a photograph, give it another name",
            detail=f"beside {beside}",
        )
    for same in by_name(listing.photographs, stem_of).values():
        if len(same) > 1 and not all(mask_names.of.get(name) for name in same):
            for name in same:
                others = ", ".join(other for other in same if other != name)
                reason = "one mask file would belong to several photographs"
                yield _problem(folder, name, reason, hint="rename all but one", detail=f"beside {others}")


def _problem(folder: Path, name: str, reason: str, *, hint: str, detail: str = "") -> Remark:
    return Remark(
        folder=str(folder), names=(name,), reason=reason, hint=hint, details=(detail,) if detail else ()
    )


def _remove_leftovers(folder: Path, listing: Listing) -> None:
    """Remove what a killed command staged; what another command is writing is locked, and stays."""
    for one in sorted({(folder / name).parent for name in listing.photographs}):
        for leftover in abandoned_files(one):
            if leftover.name.removesuffix(".part")[:-9].endswith(_MASK_SUFFIX):
                remove_abandoned(leftover)


def _looked_at(
    folder: Path, mask_names: MaskNames, names: list[str], *, overwrite: bool
) -> Iterator[tuple[str, _Ready | Outcome | Remark]]:
    """Look at one photograph after the other, one ahead of the network."""

    def look(name: str) -> _Ready | Outcome | Remark:
        try:
            return _look(folder, mask_names.of.get(name, ()), name, overwrite=overwrite)
        except (SampleError, MachineUnfit) as error:
            return _problem(folder, name, str(error), hint=error.hint)
        except InputMissing as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or not is_folder(folder):
                raise
            wrong = Path(cause.filename).relative_to(folder).as_posix()
            return _problem(folder, wrong, f"cannot be read ({cause.strerror})", hint=error.hint)

    with ThreadPoolExecutor(1, "look") as pool:
        ahead = [pool.submit(look, name) for name in names[:1]]
        for index, name in enumerate(names):
            seen = ahead.pop().result()
            ahead += [pool.submit(look, following) for following in names[index + 1 : index + 2]]
            yield name, seen


def _look(folder: Path, masks: tuple[str, ...], name: str, *, overwrite: bool) -> _Ready | Outcome:
    path = _mask_path(folder / name)
    own = _own_marks(path) if masks == (path.relative_to(folder).as_posix(),) else None
    if masks and own is None:
        return Outcome(name=name, kind=Kind.THEIRS)
    data = read_file(folder, name)
    sha256 = hashlib.sha256(data).hexdigest()
    kept = _kept(name, own, sha256)
    if own is not None and not overwrite and not kept.is_outdated:
        return kept
    photo = decode(data)
    if own is not None and not overwrite:
        return kept
    if own is None and has_useful_alpha(photo):
        return Outcome(name=name, kind=Kind.ALPHA)
    return _Ready(photo=photo, sha256=sha256, replaces=own is not None)


def _kept(name: str, own: Marks | None, sha256: str) -> Outcome:
    """The outcome of a photograph whose mask file stays as it is; `own` is None for one of the user's."""
    if own is None:
        return Outcome(name=name, kind=Kind.THEIRS)
    return Outcome(name=name, kind=Kind.EARLIER, verdict=own.verdict, is_outdated=own.photograph != sha256)


def _mask_path(photograph: Path) -> Path:
    return photograph.with_name(photograph.stem + _MASK_SUFFIX)


def _own_marks(path: Path) -> Marks | None:
    """The marks of a mask file of our own; None for any other, and for a link."""
    if is_link(path) or not is_file(path):
        return None
    return read_marks(read_file(path.parent, path.name))


def _cut(
    folder: Path, name: str, ready: _Ready, network: SaliencyNetwork, files: DiskFiles
) -> Outcome | Remark:
    path = _mask_path(folder / name)
    levels = network.levels(ready.photo.pixels)
    verdict = judge(ready.photo, levels)
    if verdict is Verdict.EMPTY:
        if ready.replaces:
            _remove(path, files)
        return Outcome(name=name, kind=Kind.EMPTY, verdict=verdict)
    marks = Marks(model=network.sha256, photograph=ready.sha256, verdict=verdict)
    try:
        is_written = _write(path, own_mask_file(levels, marks), files, replaces=ready.replaces)
    except StorageFailed as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.ENAMETOOLONG:
            raise
        return _problem(folder, name, "its mask file's name would be too long", hint="shorten the name")
    if not is_written:  # another cut-out may have been faster, or the user
        return _kept(name, _own_marks(path), ready.sha256)
    return Outcome(name=name, kind=Kind.WRITTEN, verdict=verdict)


def _write(path: Path, data: bytes, files: DiskFiles, *, replaces: bool) -> bool:
    """Give a mask its name, durably; False, changing nothing, when another one has come meanwhile."""
    with storing(path), staged_beside(path, files=files) as (descriptor, staged):
        files.write(descriptor, data)
        files.fsync(descriptor)
        if replaces and _own_marks(path) is not None:
            rename_durably(files, staged, path)
            return True
        if not give_name(files, staged, path):
            return False
        files.fsync_folder(path.parent)
        return True


def _remove(path: Path, files: DiskFiles) -> None:
    """Remove a mask of our own where a new look finds no subject."""
    with storing(path):
        if _own_marks(path) is not None:
            files.unlink(path)
            files.fsync_folder(path.parent)


def _concern(one: Outcome) -> Concern | None:
    if one.is_outdated:
        return Concern.OUTDATED
    return Concern[one.verdict.name] if one.verdict not in (None, Verdict.CLEAR) else None


def _drawn(folder: Path, one: Outcome) -> NDArray[np.uint8]:
    try:
        photo = decode(read_file(folder, one.name))
    except SampleError as error:  # exchanged meanwhile, or an earlier version of a decoder could read it
        raise SourcesRefused(f"{folder / one.name}: {error}", hint=error.hint) from error
    concern = _concern(one)
    mask = None
    if one.kind is not Kind.EMPTY:
        path = _mask_path(folder / one.name)
        with suppress(ComposeFailed):  # of another size, when the photograph was exchanged
            mask = cut_out(photo, MaskMode.FILE, decode(read_file(path.parent, path.name))).mask
    return cut_out_cell(one.name, photo.pixels, mask, remark=concern.remark if concern else "")


def _open_model(path: Path | None, on_download: OnDownload) -> SaliencyNetwork:
    if path is not None:
        return _read_model(path)
    data = fetch(U2NETP, _model_bytes, on_progress=on_download)
    return SaliencyNetwork(data, where=str(cached_path(U2NETP)), threads=usable_cores())


def _read_model(path: Path) -> SaliencyNetwork:
    """A model from anywhere; one that is not the released one is tried first, and run once."""
    data = _model_bytes(path)
    is_released = hashlib.sha256(data).hexdigest() == U2NETP.sha256
    if not is_released and (problem := try_to_read("shardgen.operations.cut_out", path)):
        raise WeightsRefused(f"{path}: damaged model: {problem}", hint=_FETCH)
    network = SaliencyNetwork(data, where=str(path), threads=usable_cores())
    if not is_released:
        network.check()
    return network


def _model_bytes(path: Path) -> bytes:
    try:
        data = read_regular(path, limit=_MODEL_BYTES)
    except Irregular as error:
        raise WeightsRefused(f"{path}: {error.strerror}", hint=_FETCH) from error
    except OSError as error:
        raise InputMissing(
            f"{path}: {error.strerror}", hint=how_to_read(error, path, otherwise=_FETCH)
        ) from error
    if data.lstrip()[:1] == b"<":
        raise WeightsRefused(f"{path}: a web page, not a network", hint=_FETCH)
    return data


def _try(path: Path) -> None:
    SaliencyNetwork(_model_bytes(path), where=str(path), threads=1).check()


if __name__ == "__main__":
    sys.exit(main_of_trial(_try, *sys.argv[1:]))
