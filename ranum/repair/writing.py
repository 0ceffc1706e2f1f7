"""Edits written into the user's files: all or none, atomically, with the old ones kept."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import tokenize
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ranum.errors import PatchError
from ranum.repair._diff import edits_by_file
from ranum.repair._splice import Text, merge, read_text
from ranum.repair.patch import Edit
from ranum.source import is_installed


def refusal(edit: Edit) -> str:
    """Why a diff of an edit's file could not be applied to any file; "" if it could."""
    if edit.file.startswith("<"):
        return f"{edit.file} is a notebook cell or was made by exec; change it by hand."
    if not os.path.isfile(edit.file):
        return f"{edit.file} is no file (it lies in an archive, or was deleted); unpack it first."
    if read_text(edit.file).content != edit.text.content:
        return f"{edit.file} was changed on disk since it was imported; run this again."
    return ""


def write_edits(edits: Iterable[Edit]) -> list[tuple[Path, Path]]:
    """Makes the edits in the files themselves; each old file is kept beside the new one.

    A file is replaced in one step by its whole new text, in its own encoding, with its
    permissions; whoever looks, even after a crash, finds the old one or the new one, and the
    old one kept. If one cannot be written, those that were are put back.

    Returns:
        Pairs of a file and where its old text now is: "model.py.orig", or "model.py.orig1"
        if that exists, ...

    Raises:
        PatchError: If a file cannot be edited: it changed on disk, lies in an archive, belongs
            to an installed package, is not writable; or if edits overlap.
    """
    edits = list(edits)
    for edit in edits:
        reason = refusal(edit)
        if not reason and is_installed(edit.file):
            reason = f"{edit.file} belongs to an installed package; copy it into your project."
        elif not reason and not os.stat(edit.file).st_mode & 0o222:
            reason = f"{edit.file} is read-only; make it writable, or apply the diff elsewhere."
        if reason:
            raise PatchError(f"Nothing was written: {reason}")
    texts = {
        Path(os.path.realpath(file)): merge(text, splices).text
        for file, (text, splices) in edits_by_file(edits).items()
    }
    done: list[tuple[Path, Path]] = []
    try:
        for path, text in texts.items():
            done.append((path, _replace(path, text)))
    except BaseException as error:
        for path, kept in reversed(done):
            os.replace(kept, path)
        if isinstance(error, OSError):
            raise PatchError(f"Nothing was written: {error}") from error
        raise
    return done


def _replace(path: Path, text: Text) -> Path:
    old = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(old).readline)
    name = "utf-8" if encoding == "utf-8-sig" else encoding
    data = (text.mark + text.content).encode(name)
    kept = next(
        place
        for number in range(10_000)
        if not (place := path.with_name(f"{path.name}.orig{number or ''}")).exists()
    )
    shutil.copy2(path, kept)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        for leftover in (temporary, kept):
            with suppress(OSError):
                os.unlink(leftover)
        raise
    return kept
