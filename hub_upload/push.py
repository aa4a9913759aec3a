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

OWN_TAG = "dacse"  # every card written here carries it: a repository without it is somebody else's
PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib")
# Names of which an older version of a repository may hold more than the new one: weight and data shards, remote code.
SHARD_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*_dacse.py", "*.parquet", "data/*.parquet")
RETRY_WAITS = (1.0, 4.0)  # seconds before the second and the third attempt


@dataclass(frozen=True)
class Publication:
    """What was published, or would be: `url` is the commit's address, None after a dry run."""

    repo_id: str
    repo_type: str
    files: list[tuple[str, int]]  # path, bytes
    url: str | None

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size in self.files)


def push(
    repo_id: str,
    prepare: Callable[[Path], None],
    *,
    repo_type: str = "model",
    private: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Publication:
    """Publishes what `prepare` writes into an empty folder.

    Token and repository are checked before `prepare` runs, because preparing may take minutes. A dry run needs
    neither token nor network.

    Args:
        repo_id: "name" or "organisation/name".
        prepare: fills the folder it is given, and raises when its content is not fit to be published.
        repo_type: "model", "dataset" or "space".
        private: whether the repository, if it has to be made, is visible to its owners only.
        force: replaces the content of a repository that was not published by dacse.
        dry_run: prepares and lists, uploads nothing.

    Raises:
        PermissionError: no token, a malformed or refused one, or one without the right to write there.
        FileExistsError: the repository holds something else and `force` is not given.
        ConnectionError: the Hub cannot be reached, or does not stop failing.
        ValueError: a prepared file is a pickle.
    """
    if not dry_run:
        api = authorized_api()
        check_replaceable(api, repo_id, repo_type, force)
    with TemporaryDirectory(prefix="dacse-") as name:
        folder = Path(name)
        prepare(folder)
        refuse_pickles(folder)
        files = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files_in(folder)]
        url = None if dry_run else publish(api, folder, repo_id, repo_type, private)
    return Publication(repo_id, repo_type, files, url)


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
    if path.suffix in PICKLE_SUFFIXES or (start[:1] == b"\x80" and start[1:] in b"\x02\x03\x04\x05"):
        return True
    if start != b"PK":
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
        access = retry(api.whoami)["auth"]["accessToken"]
    if access["role"] == "read":
        raise PermissionError("the Hugging Face token may only read; make one that may write and run `hf auth login`")
    return api


def remote_info(api: HfApi, repo_id: str, repo_type: str):
    """The repository's head (sha, siblings, tags), None if there is no such repository."""
    try:
        return retry(api.repo_info, repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return None


def is_own(info) -> bool:
    """Whether dacse published the repository, or nobody has put anything there yet."""
    return OWN_TAG in (info.tags or []) or all(file.rfilename == ".gitattributes" for file in info.siblings)


def check_replaceable(api: HfApi, repo_id: str, repo_type: str, force: bool) -> None:
    """Raises FileExistsError if the repository holds something that dacse did not publish, unless `force`."""
    with clear_errors(f"looking at {repo_id}"):
        info = remote_info(api, repo_id, repo_type)
    if info is not None and not is_own(info) and not force:
        names = ", ".join(file.rfilename for file in info.siblings[:5])
        raise FileExistsError(
            f"the {repo_type} repository {repo_id} exists with content that dacse did not publish ({names}); "
            "choose another name, or replace its content with --force"
        )


def is_shard(path: str) -> bool:
    return any(path.count("/") == shard.count("/") and fnmatch(path, shard) for shard in SHARD_PATTERNS)


def superseded(info, staged: set[str]) -> list[str]:
    """Files of the remote head that must go when `staged` comes: stale shards, or everything that is foreign."""
    left_over = {file.rfilename for file in info.siblings} - staged - {".gitattributes"}
    if not is_own(info):
        return sorted(left_over)
    return sorted(path for path in left_over if is_shard(path))


def publish(api: HfApi, folder: Path, repo_id: str, repo_type: str, private: bool) -> str:
    """Uploads `folder` as one commit and returns its URL; on any failure the remote is as it was.

    Running it again after a failure uploads only what the Hub does not have yet. `upload_folder` is not used because
    it may split a large folder into several commits.
    """
    with clear_errors(f"publishing {repo_id}"):
        created = remote_info(api, repo_id, repo_type) is None
        if created:
            sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
            retry(api.create_repo, repo_id, repo_type=repo_type, private=private, exist_ok=True, **sdk)
        parent = retry(api.repo_info, repo_id, repo_type=repo_type).sha
        try:
            return retry(commit, api, folder, repo_id, repo_type, parent)
        except BaseException:
            if created:
                withdraw(api, repo_id, repo_type, parent)
            raise


def commit(api: HfApi, folder: Path, repo_id: str, repo_type: str, parent: str) -> str:
    """One attempt; leaves out what the remote already has, so a commit whose answer was lost is not repeated."""
    staged = {path.relative_to(folder).as_posix(): path for path in files_in(folder)}
    info = api.repo_info(repo_id, repo_type=repo_type)
    operations = [CommitOperationAdd(name, path) for name, path in staged.items()]
    operations += [CommitOperationDelete(name) for name in superseded(info, set(staged))]
    done = api.create_commit(
        repo_id, operations, commit_message="Publish with dacse", repo_type=repo_type, parent_commit=parent
    )
    return done.commit_url


def withdraw(api: HfApi, repo_id: str, repo_type: str, parent: str) -> None:
    """Deletes the repository made a moment ago, if nothing has been committed to it since."""
    if api.repo_info(repo_id, repo_type=repo_type).sha == parent:
        api.delete_repo(repo_id, repo_type=repo_type)


def retry(function: Callable, *args, **kwargs):
    """Calls the Hub, again after a wait when it answers 5xx or the connection breaks."""
    for wait in RETRY_WAITS:
        try:
            return function(*args, **kwargs)
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
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
    except RuntimeError as error:  # a large file: the answer of the Hub is the cause, or the Xet client gave up
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
