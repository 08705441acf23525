"""A facility's home directory: what stands where, who may read it, and who holds it.

    HOME/            0700
      config.toml    settings (node/config.py)
      card.json      the facility's signed introduction
      genesis.json   the network this home has joined
      ticket.json    by which it joined, if it did not found the network
      keys/          the sealed keystore
      recovery.key   opens backups; made by `init`, and to be moved to where this machine is not
      lock           held by the one daemon of this home
      api.sock       the daemon's local socket, 0600
      api.path       names the socket when HOME's own path is too long for one

Databases are directories beside these, named by whoever opens them.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import Refused, StorageFull

ADDRESS_BOOK = "addresses.json"
"""Where other members were met last."""
LOCK_TRIES, LOCK_TRY_SECONDS = 5, 0.05
SOCKET_PATH_BYTES_MAX = 100
"""sun_path has 108 bytes on Linux and 104 elsewhere, one of them a zero."""


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of one facility. Making the value touches nothing."""

    path: Path

    @staticmethod
    def locate(given: Path | None) -> "Home":
        """Return the home that `--home`, else $CARECHAIN_HOME, else ~/.carechain names."""
        chosen = given or Path(os.environ.get("CARECHAIN_HOME") or Path.home() / ".carechain")
        return Home(Path(os.path.abspath(chosen.expanduser())))  # noqa: PTH100  (resolve() would follow links the user chose)

    @property
    def config(self) -> Path:
        """The settings."""
        return self.path / "config.toml"

    @property
    def card(self) -> Path:
        """The facility's signed introduction."""
        return self.path / "card.json"

    @property
    def genesis(self) -> Path:
        """The genesis configuration of the network this home has joined; absent before."""
        return self.path / "genesis.json"

    @property
    def ticket(self) -> Path:
        """The ticket by which this home joins or has joined; absent in those of founding members."""
        return self.path / "ticket.json"

    @property
    def keys(self) -> Path:
        """The keystore's directory."""
        return self.path / "keys"

    @property
    def key_file(self) -> Path:
        """The key that opens the keystore of a home made with --no-passphrase; absent otherwise."""
        return self.path / "keystore.key"

    @property
    def recovery_key(self) -> Path:
        """Where `init` puts the recovery key unless told otherwise; it belongs elsewhere, and no daemon reads it."""
        return self.path / "recovery.key"

    def make(self) -> None:
        """Create the directory, readable by its owner only.

        Raises:
            Refused: it cannot be created, is no directory, or a facility lives there already.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            taken = any(self.path.iterdir())
            if not taken:  # whatever else the directory is, it keeps its mode
                self.path.chmod(0o700)
        except OSError as error:
            raise Refused(
                f"the home {self.path} cannot be made ({error.strerror}); choose another --home"
            ) from None
        if taken:
            raise Refused(
                f"the home {self.path} is not empty and init overwrites nothing; choose another --home or remove it first"
            )

    def require(self) -> None:
        """Check that `init` has made this home.

        Raises:
            Refused: it has not.
        """
        if not self.config.exists():
            raise Refused(
                f"no facility at {self.path}; make one with carechain init --name NAME, or name its --home"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this home until the block ends; the system lets go when the process dies.

        Raises:
            Refused: another daemon holds it.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for _ in range(LOCK_TRIES):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    # Perhaps only a command that looks whether somebody holds it (`is_held`).
                    time.sleep(LOCK_TRY_SECONDS)
            else:
                raise Refused(f"a daemon is already running for {self.path}; stop it before starting another")
            yield
        finally:
            os.close(descriptor)

    def is_held(self) -> bool:
        """Return whether a daemon holds this home: it runs, or is just starting or stopping."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def socket_path(self) -> Path | None:
        """Return the path of the daemon's socket, or None when there is no socket."""
        named = self.path / "api.path"
        try:
            path = Path(named.read_text().strip())
        except (OSError, ValueError):
            path = self.path / "api.sock"
        return path if path.is_socket() else None

    @contextlib.contextmanager
    def bound_socket(self) -> Iterator[socket.socket]:
        """Bind the daemon's socket, readable by its owner only, for as long as the block lasts. The lock must be held.

        Where the path in HOME is too long for a socket, it lies in a private directory and HOME/api.path names it.
        """
        named, path, private = self.path / "api.path", self.path / "api.sock", None
        self._remove_stale_socket()
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
            private = _private_directory()
            path = private / "api.sock"
            write_atomically(named, f"{path}\n".encode())
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(path))
            # Nobody connects before listen(), so nobody slips in before this line either.
            path.chmod(0o600)
            yield listener
        finally:
            listener.close()
            path.unlink(missing_ok=True)
            if private is not None:
                named.unlink(missing_ok=True)
                shutil.rmtree(private, ignore_errors=True)

    def _remove_stale_socket(self) -> None:
        """Remove what a killed daemon left; we hold the lock, so nobody listens there."""
        stale, named = self.socket_path(), self.path / "api.path"
        if stale is not None:
            stale.unlink(missing_ok=True)
            if named.exists() and stale.parent.name.startswith("carechain-"):
                shutil.rmtree(stale.parent, ignore_errors=True)
        named.unlink(missing_ok=True)
        (self.path / "api.sock").unlink(missing_ok=True)


def _private_directory() -> Path:
    """Return a new directory (0700) with a short path: in $XDG_RUNTIME_DIR, else in the system's temporary directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    fits = 0 < len(os.fsencode(runtime)) <= SOCKET_PATH_BYTES_MAX - 30 and os.access(runtime, os.W_OK)
    return Path(tempfile.mkdtemp(prefix="carechain-", dir=runtime if fits else "/tmp"))  # noqa: S108  (mkdtemp makes it private)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o600, kept: Path | None = None) -> Iterator[int]:
    """Yield a descriptor whose bytes replace the file at `path` when the block ends well; otherwise the old file stays.

    With `kept` the bytes gather in that file. It is opened as an earlier block has left it, and stays when this one fails;
    while another process has it open, or when it is not ours alone, nothing is kept.

    Raises:
        Refused: the directory is missing or may not be written.
        StorageFull: the disk is full.
    """
    if path.exists() and not path.is_file():
        # A directory cannot be replaced by a file, and a device such as /dev/null must not be.
        raise Refused(f"{path} is not a regular file; choose another file")
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.part")
    opened = None if kept is None else _opened_alone(kept)
    try:
        if kept is None or opened is None:
            kept, descriptor = (
                None,
                os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode),
            )
        else:
            temporary, descriptor = kept, opened
    except OSError as error:
        raise Refused(f"{path} cannot be written ({error.strerror}); choose another file") from None
    try:
        try:
            yield descriptor
            # Persist before renaming: a name that points to bytes not yet on disk is half a file after a power cut.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            temporary.replace(path)
        except OSError as error:
            raise Refused(f"{path} cannot be replaced ({error.strerror}); choose another file") from None
    except BaseException as error:
        if kept is None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"the disk is full and {path} was not written; free some space and repeat"
            ) from None
        raise
    sync_directory(path.parent)


def _opened_alone(path: Path) -> int | None:
    """Open or make a hidden file that nobody else can read, has linked or has open; None where that cannot be."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return None  # a link, a directory, or nothing may be made here: the caller's own attempt says which
    found = os.fstat(descriptor)
    is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
    try:
        if is_ours and not found.st_mode & 0o077:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    except OSError:
        pass  # another process gathers the same file: this one does not wait for it
    os.close(descriptor)
    return None


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace the file at `path` by `data`, durably, never leaving half of it.

    Raises:
        Refused: the directory is missing or may not be written.
        StorageFull: the disk is full.
    """
    with replacing(path, mode=mode) as descriptor:
        write_all(descriptor, data)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte of `data`; os.write may take fewer at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
