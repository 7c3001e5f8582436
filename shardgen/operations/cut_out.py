"""Cut out: a mask file beside each photograph that has none, before a run is planned.

A mask is a file like any other from then on: the plan holds its sha256, and no sample's bytes depend on the
network that drew it.
"""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardgen.domain.sample import spread_samples
from shardgen.errors import ComposeFailed, InputMissing, SampleError, SourcesRefused, WeightsRefused
from shardgen.imaging.codec import Photograph, decode
from shardgen.imaging.masks import cut_out
from shardgen.imaging.options import MaskMode
from shardgen.imaging.own_masks import Marks, Verdict, has_useful_alpha, judge, own_mask_file, read_marks
from shardgen.imaging.saliency import SaliencyNetwork
from shardgen.imaging.sheet import cut_out_cell, cut_out_sheet
from shardgen.machine.cores import usable_cores
from shardgen.machine.trial import main_of_trial, try_to_read
from shardgen.operations.preview import refuse_picture
from shardgen.sources.folder import SUFFIXES, Listing, MaskNames, list_folder, pair_masks, read_file, stem_of
from shardgen.storage.atomic import (
    abandoned_files,
    give_name,
    publish_file,
    remove_abandoned,
    rename_durably,
    staged_beside,
)
from shardgen.storage.bounded import Irregular, how_to_read, read_regular
from shardgen.storage.fetch import OnDownload, Released, cached_path, fetch
from shardgen.storage.files import DiskFiles, is_file, is_folder, is_link, is_there, storing

U2NETP = Released(
    name="u2netp",
    url="https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2netp.onnx",
    size_bytes=4_574_861,
    sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
    otherwise="name it where it lies: shardgen cut-out FOLDER --model u2netp.onnx",
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
    """What became of one photograph; `verdict` is None where no mask of ours is meant.

    `is_outdated`: its mask was made earlier, of another file of that name.
    """

    name: str
    kind: Kind
    verdict: Verdict | None = None
    is_outdated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOuts:
    """Every photograph's outcome in the order of names, and the problems with others, one line each."""

    folder: Path
    outcomes: tuple[Outcome, ...]
    problems: tuple[str, ...]


class Concern(Enum):
    """What asks for a look: in a list, what to do about it, and on a sheet."""

    EMPTY = (
        "nothing stands out, no mask written",
        "draw NAME.mask.png yourself, or take them out",
        "no subject found, no mask",
    )
    FULL = ("the mask covers nearly the whole picture", "look, and draw a better one", "nearly all of it")
    UNCERTAIN = (
        "the mask is uncertain, or of several things",
        "look closely, and draw a better one",
        "uncertain, or several things",
    )
    OUTDATED = (
        "the mask is of an earlier photograph of that name",
        "add --overwrite",
        "mask of an earlier photograph",
    )

    def __init__(self, words: str, advice: str, remark: str) -> None:
        self.words, self.advice, self.remark = words, advice, remark


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOutRequest:
    """`path` is a folder, or one photograph, whose mask is then made anew if it is shardgen's own.

    `model` is None for the released one, which is fetched if need be. `overwrite` makes shardgen's own masks
    anew, `sheet` is a PNG to draw.
    """

    path: Path
    model: Path | None = None
    overwrite: bool = False
    sheet: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOutEvents:
    """`on_found` hears how many photographs there are, `on_file` of each that is done."""

    on_found: Callable[[int], None] = field(default=lambda _count: None)
    on_file: Callable[[str], None] = field(default=lambda _name: None)
    on_download: OnDownload = field(default=lambda _done, _total: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A decoded photograph that gets a mask, in the place of one of our own with `replaces`."""

    photo: Photograph
    sha256: str
    replaces: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    network: SaliencyNetwork
    sha256: str


def cut_out_photographs(
    request: CutOutRequest, *, events: CutOutEvents | None = None, files: DiskFiles | None = None
) -> CutOuts:
    """Write `NAME.mask.png` beside each photograph that has neither a useful alpha channel nor a mask file.

    Each mask is durable before the next photograph's turn; whatever ends this, the same again goes on. A mask
    that is not shardgen's own is never replaced.

    Raises InputMissing, WeightsRefused, DownloadFailed, StorageFailed; SourcesRefused for one photograph by
    name whose mask is the user's.
    """
    events, files = events or CutOutEvents(), files or DiskFiles()
    folder, listing, overwrite = _listed(request)
    if request.sheet is not None:
        refuse_picture(request.sheet, folder, option="--sheet")
    _remove_leftovers(folder, listing)
    mask_names = pair_masks(listing.photographs, listing.masks)
    names, problems = _without_rivals(listing, mask_names)
    events.on_found(len(names))
    outcomes: list[Outcome] = []
    model: _Model | None = None
    for name, seen in _looked_at(folder, mask_names, names, overwrite=overwrite):
        if isinstance(seen, _Ready):
            model = model or _open_model(request.model, events.on_download)
            outcomes.append(_cut(folder / name, name, seen, model, files))
        elif isinstance(seen, Outcome):
            outcomes.append(seen)
        else:
            problems.append(seen)
        events.on_file(name)
    if not is_folder(request.path) and any(one.kind is Kind.THEIRS for one in outcomes):
        raise SourcesRefused(
            f"{request.path}: it has a mask that shardgen did not make, or that was changed since",
            hint="move that mask away; it is never replaced",
        )
    return CutOuts(folder=folder, outcomes=tuple(outcomes), problems=tuple(problems))


def draw_sheet(done: CutOuts, path: Path) -> int:
    """Draw photographs beside their cut-outs as PNG, replacing an earlier one; how many were drawn.

    At most 120: all that ask for a look, as far as they fit, then others spread over the rest. None without
    masks of shardgen's own.
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
    """The names of photographs that ask for a look, in groups."""
    found: dict[Concern, list[str]] = {concern: [] for concern in Concern}
    for one in done.outcomes:
        if concern := _concern(one):
            found[concern].append(one.name)
    return {concern: names for concern, names in found.items() if names}


def check_model(path: Path) -> dict[str, str | int]:
    """What `weights check` says of a network for cut-outs; raises InputMissing, WeightsRefused."""
    model = _read_model(path)
    return {
        "network": "U²-Net, cuts out what stands out (shardgen cut-out)",
        "released as": U2NETP.name if model.sha256 == U2NETP.sha256 else "unknown",
        "bytes": path.stat().st_size,
        "sha256": model.sha256,
    }


def fetch_model(on_download: OnDownload) -> str:
    """Fetch the released network into the cache, unless it is there; its sha256."""
    return hashlib.sha256(fetch(U2NETP, _model_bytes, on_progress=on_download)).hexdigest()


def _listed(request: CutOutRequest) -> tuple[Path, Listing, bool]:
    """The folder, what lies in it, whether to make our own masks anew."""
    path = request.path
    if not is_folder(path):
        return path.parent, _one_photograph(path), True
    if is_file(path / "shardgen.toml"):
        raise InputMissing(
            f"{path}: a run directory, not a folder of photographs",
            hint="name the folder of foregrounds that its shardgen.toml has under [sources]",
        )
    listing = list_folder(path, what="photographs", with_masks=True)
    if not listing.photographs and not listing.unnameable:
        raise InputMissing(
            f"{path}: no photographs in this folder",
            hint="put JPEG, PNG, WebP, BMP or TIFF files into it, or give another folder",
        )
    return path, listing, request.overwrite


def _one_photograph(path: Path) -> Listing:
    """A photograph and what lies beside it under its name, as a folder's listing has them."""
    if not is_there(path):
        raise InputMissing(f"{path}: no such folder or photograph", hint="give the right path")
    if path.suffix.lower() not in SUFFIXES or not is_file(path):
        raise InputMissing(
            f"{path}: not a photograph by its name", hint="name a folder, or a JPEG, PNG, WebP, BMP or TIFF"
        )
    if _is_mask(path.name):
        raise InputMissing(f"{path}: a mask file", hint="name the photograph that it belongs to")
    with storing(path.parent):
        beside = [one.name for one in path.parent.iterdir() if one.suffix.lower() in SUFFIXES]
    alike = [name for name in beside if not _is_mask(name) and _key(name) == _key(path.name)]
    return Listing(
        photographs=tuple(sorted(alike)),
        masks=tuple(sorted(filter(_is_mask, beside))),
        others=(),
        unnameable=(),
        left_over={},
    )


def _is_mask(name: str) -> bool:
    return stem_of(name).lower().endswith(".mask")


def _key(name: str) -> str:
    """What two photographs have in common that would share a mask file."""
    return unicodedata.normalize("NFC", stem_of(name))


def _without_rivals(listing: Listing, mask_names: MaskNames) -> tuple[list[str], list[str]]:
    """The photographs that can have a mask of their own, and problems."""
    count = Counter(map(_key, listing.photographs))
    misnamed = mask_names.misnamed
    spared = {*misnamed, *misnamed.values()}
    names = [name for name in listing.photographs if count[_key(name)] == 1 and name not in spared]
    problems = [f"{name}: the file's name is not UTF-8 (rename it)" for name in listing.unnameable]
    problems += [
        f"{name}: looks like the mask of {misnamed[name]} (rename it NAME.mask.png; if it is a photograph, "
        "give it another name)"
        for name in sorted(misnamed)
    ]
    for key in sorted(key for key in count if count[key] > 1):
        rivals = ", ".join(name for name in listing.photographs if _key(name) == key)
        problems.append(f"{rivals}: one mask file would belong to all of them (rename all but one)")
    return names, problems


def _remove_leftovers(folder: Path, listing: Listing) -> None:
    """Remove what a killed command staged; one that another command is writing is locked, and stays."""
    for one in sorted({(folder / name).parent for name in listing.photographs}):
        for leftover in abandoned_files(one):
            if leftover.name.removesuffix(".part")[:-9].endswith(_MASK_SUFFIX):
                remove_abandoned(leftover)


def _looked_at(
    folder: Path, mask_names: MaskNames, names: list[str], *, overwrite: bool
) -> Iterator[tuple[str, _Ready | Outcome | str]]:
    """Look at one photograph after the other, one ahead of the network; a problem is a line of text."""

    def look(name: str) -> _Ready | Outcome | str:
        try:
            return _look(folder, mask_names.of.get(name, ()), name, overwrite=overwrite)
        except SampleError as error:
            return f"{name}: {error}" + (f" ({error.hint})" if error.hint else "")
        except InputMissing as error:
            if not isinstance(error.__cause__, PermissionError | FileNotFoundError) or not is_folder(folder):
                raise
            return f"{name}: cannot be read ({error.__cause__.strerror})"

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
    if own is not None and not overwrite:
        return Outcome(
            name=name, kind=Kind.EARLIER, verdict=own.verdict, is_outdated=own.photograph != sha256
        )
    photo = decode(data)
    if own is None and has_useful_alpha(photo):
        return Outcome(name=name, kind=Kind.ALPHA)
    return _Ready(photo=photo, sha256=sha256, replaces=own is not None)


def _mask_path(photograph: Path) -> Path:
    return photograph.with_name(photograph.stem + _MASK_SUFFIX)


def _own_marks(path: Path) -> Marks | None:
    """The marks of a mask file of our own; None for any other, and for a link."""
    if is_link(path) or not is_file(path):
        return None
    return read_marks(read_file(path.parent, path.name))


def _cut(photograph: Path, name: str, ready: _Ready, model: _Model, files: DiskFiles) -> Outcome:
    levels = model.network.levels(ready.photo.pixels)
    verdict = judge(ready.photo, levels)
    if verdict is Verdict.EMPTY:
        if ready.replaces:
            _remove(_mask_path(photograph), files)
        return Outcome(name=name, kind=Kind.EMPTY, verdict=verdict)
    marks = Marks(model=model.sha256, photograph=ready.sha256, verdict=verdict)
    is_ours = _write(_mask_path(photograph), own_mask_file(levels, marks), files, replaces=ready.replaces)
    return Outcome(
        name=name,
        kind=Kind.WRITTEN if is_ours else Kind.THEIRS,
        verdict=verdict if is_ours else None,
    )


def _write(path: Path, data: bytes, files: DiskFiles, *, replaces: bool) -> bool:
    """Give a mask its name, durably; False, changing nothing, when somebody else's has come meanwhile."""
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
    """A mask of our own that is not made again: the photograph has none now."""
    with storing(path):
        if _own_marks(path) is not None:
            files.unlink(path)
            files.fsync_folder(path.parent)


def _concern(one: Outcome) -> Concern | None:
    if one.is_outdated:
        return Concern.OUTDATED
    return Concern[one.verdict.name] if one.verdict not in (None, Verdict.CLEAR) else None


def _drawn(folder: Path, one: Outcome) -> NDArray[np.uint8]:
    photo = decode(read_file(folder, one.name))
    concern = _concern(one)
    mask = None
    if one.kind is not Kind.EMPTY:
        path = _mask_path(folder / one.name)
        with suppress(ComposeFailed):  # of another size, when the photograph was exchanged
            mask = cut_out(photo, MaskMode.FILE, decode(read_file(path.parent, path.name))).mask
    return cut_out_cell(one.name, photo.pixels, mask, remark=concern.remark if concern else "")


def _open_model(path: Path | None, on_download: OnDownload) -> _Model:
    if path is not None:
        return _read_model(path)
    data = fetch(U2NETP, _model_bytes, on_progress=on_download)
    return _model_of(data, cached_path(U2NETP))


def _read_model(path: Path) -> _Model:
    """A model from anywhere; one that is not the released one is tried first."""
    data = _model_bytes(path)
    if hashlib.sha256(data).hexdigest() != U2NETP.sha256 and (
        problem := try_to_read("shardgen.operations.cut_out", path)
    ):
        raise WeightsRefused(f"{path}: damaged model: {problem}", hint=_FETCH)
    return _model_of(data, path)


def _model_of(data: bytes, path: Path) -> _Model:
    sha256 = hashlib.sha256(data).hexdigest()
    network = SaliencyNetwork(data, where=str(path), threads=usable_cores())
    if sha256 != U2NETP.sha256:
        network.check()
    return _Model(network=network, sha256=sha256)


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
