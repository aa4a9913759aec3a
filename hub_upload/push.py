"""Makes a folder the content of a Hub repository in one commit, or leaves the repository as it was.

Knows files, tokens and commits; knows no model and no card.
"""

import re
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

OWN_TAG = "dacse"  # every card written here carries it: a repository without it is somebody else's
PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib")
PICKLE_STARTS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
# Names of which an older version of a repository may hold more than the new one: weight and data shards, remote code.
SHARD_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*_dacse.py", "*.parquet", "data/*.parquet")
RETRY_WAITS = (1.0, 4.0)  # seconds before the second and the third attempt


@dataclass(frozen=True)
class Kind:
    """What is published: the type of repository, and a file that every repository of the kind holds."""

    repo_type: str
    landmark: str


MODEL = Kind("model", "processor_config.json")
ADAPTER = Kind("model", "adapter_config.json")
DATASET = Kind("dataset", "README.md")
SPACE = Kind("space", "app.py")


@dataclass(frozen=True)
class Publication:
    """What was published, or would be: `url` is the commit's address, None after a dry run."""

    repo_id: str
    kind: Kind
    files: list[tuple[str, int]]  # path, bytes
    url: str | None

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size in self.files)


def push(
    repo_id: str,
    kind: Kind,
    prepare: Callable[[Path], None],
    *,
    private: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Publication:
    """Publishes what `prepare` writes into an empty folder.

    Token and repository are checked before `prepare` runs, because preparing may take minutes. A dry run needs
    neither token nor network.

    Args:
        repo_id: "user/name" or "organisation/name".
        kind: of what is published.
        prepare: fills the folder it is given, and raises when its content is not fit to be published.
        private: whether the repository, if it has to be made, is visible to its owners only.
        force: replaces the content of a repository that was not published by dacse.
        dry_run: prepares and lists, uploads nothing.

    Raises:
        PermissionError: no token, a malformed or refused one, or one without the right to write there.
        FileExistsError: the repository holds something else and `force` is not given.
        ConnectionError: the Hub cannot be reached, or does not stop failing.
        ValueError: `repo_id` is no such name, or a prepared file is a pickle.
    """
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} lacks its owner; give USER/NAME or ORGANISATION/NAME")
    validate_repo_id(repo_id)
    if not dry_run:
        api = authorized_api()
        find_remote(api, repo_id, kind, force)
    with TemporaryDirectory(prefix="dacse-") as name:
        folder = Path(name)
        prepare(folder)
        refuse_pickles(folder)
        files = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files_in(folder)]
        url = None if dry_run else publish(api, folder, repo_id, kind, private, force)
    return Publication(repo_id, kind, files, url)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refuse_pickles(folder: Path) -> None:
    """Raises ValueError if a file of `folder` is a pickle, whatever its name: loading one runs code."""
    for path in files_in(folder):
        if is_pickle(path):
            name = path.relative_to(folder)
            raise ValueError(f"{name} is a pickle, which can run code when loaded; save it as safetensors instead")


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle (protocol 2 and up) or a zip with one inside, as `torch.save` writes it."""
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix in PICKLE_SUFFIXES or start in PICKLE_STARTS:
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(PICKLE_SUFFIXES) for name in archive.namelist())


def authorized_api() -> HfApi:
    """A client whose token the Hub has accepted for writing.

    Raises:
        PermissionError: see `push`.
    """
    token = get_token()
    if token is None:
        raise PermissionError("no Hugging Face token found; run `hf auth login` or set HF_TOKEN")
    if not re.fullmatch(r"[A-Za-z0-9_.\-]+", token):
        raise PermissionError("the Hugging Face token holds blanks, quotes or other stray characters; set it again")
    api = HfApi(library_name=OWN_TAG)
    with clear_errors("checking the token"):
        access = retry(api.whoami)["auth"].get("accessToken", {})  # other ways to log in have no such token
    if access.get("role") == "read":
        raise PermissionError("the Hugging Face token may only read; make one that may write and run `hf auth login`")
    return api


def find_remote(api: HfApi, repo_id: str, kind: Kind, force: bool):
    """The repository's head (sha, siblings, tags); None if there is no such repository.

    Raises:
        FileExistsError: it holds something that dacse did not publish, or of another kind, and `force` is not given.
    """
    with clear_errors(f"looking at {repo_id}"):
        try:
            info = retry(api.repo_info, repo_id, repo_type=kind.repo_type)
        except RepositoryNotFoundError:
            return None
    if not is_own(info, kind) and not force:
        names = ", ".join(file.rfilename for file in info.siblings[:5])
        raise FileExistsError(
            f"the {kind.repo_type} repository {repo_id} exists and holds something else ({names}); "
            "choose another name, or replace its content with --force"
        )
    return info


def is_own(info, kind: Kind) -> bool:
    """Whether dacse published a repository of this kind there, or nobody has put anything there yet."""
    names = {file.rfilename for file in info.siblings}
    return names <= {".gitattributes"} or (OWN_TAG in (info.tags or []) and kind.landmark in names)


def is_shard(path: str) -> bool:
    return any(path.count("/") == shard.count("/") and fnmatch(path, shard) for shard in SHARD_PATTERNS)


def superseded(info, kind: Kind, staged: set[str]) -> list[str]:
    """Files of the remote head that must go when `staged` comes: stale shards, or everything that is foreign."""
    left_over = {file.rfilename for file in info.siblings} - staged - {".gitattributes"}
    return sorted(path for path in left_over if is_shard(path) or not is_own(info, kind))


def publish(api: HfApi, folder: Path, repo_id: str, kind: Kind, private: bool, force: bool) -> str:
    """Uploads `folder` as one commit and returns its URL; on any failure the remote is as it was.

    Running it again after a failure uploads only what the Hub does not have yet. `upload_folder` is not used because
    it may split a large folder into several commits.
    """
    info = find_remote(api, repo_id, kind, force)  # once more: preparing took its time
    with clear_errors(f"publishing {repo_id}"):
        if info is None:
            sdk = {"space_sdk": "gradio"} if kind is SPACE else {}
            retry(api.create_repo, repo_id, repo_type=kind.repo_type, private=private, exist_ok=True, **sdk)
        parent = (info or retry(api.repo_info, repo_id, repo_type=kind.repo_type)).sha
        try:
            return retry(commit, api, folder, repo_id, kind, parent)
        except BaseException:
            if info is None:
                withdraw(api, repo_id, kind, parent)
            raise


def commit(api: HfApi, folder: Path, repo_id: str, kind: Kind, parent: str) -> str:
    """One attempt; leaves out what the remote already has, so a commit whose answer was lost is not repeated."""
    staged = {path.relative_to(folder).as_posix(): path for path in files_in(folder)}
    info = api.repo_info(repo_id, repo_type=kind.repo_type)
    operations = [CommitOperationAdd(name, path) for name, path in staged.items()]
    operations += [CommitOperationDelete(name) for name in superseded(info, kind, set(staged))]
    done = api.create_commit(
        repo_id, operations, commit_message="Publish with dacse", repo_type=kind.repo_type, parent_commit=parent
    )
    return done.commit_url


def withdraw(api: HfApi, repo_id: str, kind: Kind, parent: str) -> None:
    """Deletes the repository made a moment ago, if nothing has been committed to it since."""
    if api.repo_info(repo_id, repo_type=kind.repo_type).sha == parent:
        api.delete_repo(repo_id, repo_type=kind.repo_type)


def retry(function: Callable, *args, **kwargs):
    """Calls the Hub, again after a wait when it answers 5xx or the connection breaks."""
    for wait in RETRY_WAITS:
        try:
            return function(*args, **kwargs)
        except (HTTPError, ConnectionError) as error:  # the latter from the Xet client
            final = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
            if final or isinstance(error, OfflineModeIsEnabled):
                raise
        time.sleep(wait)
    return function(*args, **kwargs)


@contextmanager
def clear_errors(doing: str) -> Iterator[None]:
    """Turns what the Hub's client raises into one line that says what happened and what helps."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConnectionError(f"{doing}: offline mode is on; unset HF_HUB_OFFLINE to publish") from error
    except HTTPError as error:
        raise explained(doing, error) from error
    except (RuntimeError, OSError) as error:  # a large file: the answer of the Hub is the cause, or Xet gave up
        if isinstance(error.__cause__, HTTPError):
            raise explained(doing, error.__cause__) from error
        raise ConnectionError(
            f"{doing}: the upload broke off ({error}); nothing was published, run it again"
        ) from error


def explained(doing: str, error: HTTPError) -> OSError:
    """The error of the Hub's client as an OSError of one line."""
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(f"{doing}: the Hub cannot be reached ({error}); check the network and run it again")
    status, said = error.response.status_code, error.server_message or error.response.reason_phrase
    if status == 401:
        return PermissionError(f"{doing}: the Hub does not accept the token; run `hf auth login`, or correct HF_TOKEN")
    if status in (402, 403, 413):
        return PermissionError(f"{doing}: the Hub refused ({said}); check the token's rights and the storage quota")
    if status == 412:
        return ConnectionError(f"{doing}: somebody else committed meanwhile; nothing was published, run it again")
    return ConnectionError(f"{doing}: the Hub answered {status} ({said}); nothing was published, run it again later")
