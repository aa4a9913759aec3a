"""Makes a folder the content of a Hub repository in one commit, or leaves the repository as it was.

Knows files, tokens and commits; knows no model and no card.
"""

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.utils import validate_repo_id

from .answers import clear_errors, retry
from .remote import SPACE, Kind, Manifest, Remote, find_remote, refuse_foreign, refuse_to_overwrite

PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib")
PICKLE_STARTS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Args:
        repo_id, kind: of the repository.
        files: path and bytes of each.
        url: the commit's address, None after a dry run.
        removed: files published before, which went in the same commit.
        kept: files somebody else put there, which stayed as they were.
    """

    repo_id: str
    kind: Kind
    files: list[tuple[str, int]]
    url: str | None = None
    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

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
    variables: Mapping[str, str] | None = None,
) -> Publication:
    """Publishes what `prepare` writes into an empty folder.

    Token and repository are checked before `prepare` runs, because preparing may take minutes. A dry run needs
    neither token nor network. A manifest is published with the files; by it the next publication knows which files
    are its own: those that are no more go in the same commit, those that were added by hand stay.

    Args:
        repo_id: "user/name" or "organisation/name".
        kind: of what is published.
        prepare: fills the folder it is given, and raises when its content is not fit to be published.
        private: whether the repository, if it has to be made, is visible to its owners only.
        force: replaces what was not published by dacse.
        dry_run: prepares and lists, uploads nothing.
        variables: of a Space, set beside those it has.

    Raises:
        PermissionError: no token, a malformed or refused one, or one without the right to write there.
        FileExistsError: the repository holds something else, or under the name of one of the files a file that was
            added by hand, and `force` is not given.
        ConnectionError: the Hub cannot be reached, or does not stop failing.
        ValueError: `repo_id` is no such name, or a prepared file is a pickle.
    """
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} lacks its owner; give USER/NAME or ORGANISATION/NAME")
    validate_repo_id(repo_id)

    def look() -> Remote | None:
        remote = find_remote(api, repo_id, kind)
        if not force:
            refuse_foreign(remote, repo_id, kind)
        return remote

    if not dry_run:
        api = authorized_api()
        look()
    with TemporaryDirectory(prefix="dacse-") as name:
        folder = Path(name)
        prepare(folder)
        refuse_pickles(folder)
        Manifest(kind.name, frozenset(names_in(folder))).write(folder)
        files = [(file, (folder / file).stat().st_size) for file in names_in(folder)]
        if dry_run:
            return Publication(repo_id, kind, files)
        remote = look()  # once more: preparing took its time
        if not force:
            refuse_to_overwrite(remote, repo_id, kind, set(names_in(folder)))
        removed = [] if remote is None else remote.superseded(kind, set(names_in(folder)))
        kept = [] if remote is None else remote.added_by_hand(kind, set(names_in(folder)))
        url = publish(api, folder, repo_id, kind, remote, removed, private, variables or {})
    return Publication(repo_id, kind, files, url, removed, kept)


def names_in(folder: Path) -> list[str]:
    """Paths of the files in a folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refuse_pickles(folder: Path) -> None:
    """Raises ValueError if a file of `folder` is a pickle, whatever its name: loading one runs code."""
    for name in names_in(folder):
        if is_pickle(folder / name):
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
    api = HfApi(library_name="dacse")
    with clear_errors("checking the token"):
        access = retry(api.whoami)["auth"].get("accessToken", {})  # other ways to log in have no such token
    if access.get("role") == "read":
        raise PermissionError("the Hugging Face token may only read; make one that may write and run `hf auth login`")
    return api


def publish(
    api: HfApi,
    folder: Path,
    repo_id: str,
    kind: Kind,
    remote: Remote | None,
    removed: list[str],
    private: bool,
    variables: Mapping[str, str],
) -> str:
    """Uploads `folder` as one commit and returns its URL; on any failure the remote is as it was.

    Running it again after a failure uploads only what the Hub does not have yet. `upload_folder` is not used because
    it may split a large folder into several commits.
    """
    with clear_errors(f"publishing {repo_id}"):
        if remote is None:
            sdk = {"space_sdk": "gradio"} if kind is SPACE else {}
            retry(api.create_repo, repo_id, repo_type=kind.repo_type, private=private, exist_ok=True, **sdk)
        parent = remote.sha if remote else retry(api.repo_info, repo_id, repo_type=kind.repo_type).sha
        before: dict[str, str | None] = {}
        try:
            for name, value in changing_variables(api, repo_id, variables).items() if variables else ():
                retry(api.add_space_variable, repo_id, name, variables[name])
                before[name] = value
            return retry(commit, api, folder, repo_id, kind, removed, parent)
        except BaseException:
            if remote is None:
                withdraw(api, repo_id, kind, parent)
            else:
                restore_variables(api, repo_id, before)
            raise


def commit(api: HfApi, folder: Path, repo_id: str, kind: Kind, removed: list[str], parent: str) -> str:
    """One attempt; leaves out what the remote already has, so a commit whose answer was lost is not repeated."""
    present = {file.rfilename for file in api.repo_info(repo_id, repo_type=kind.repo_type).siblings}
    operations = [
        *(CommitOperationAdd(name, folder / name) for name in names_in(folder)),
        *(CommitOperationDelete(name) for name in removed if name in present),
    ]
    done = api.create_commit(
        repo_id, operations, commit_message="Publish with dacse", repo_type=kind.repo_type, parent_commit=parent
    )
    return done.commit_url


def withdraw(api: HfApi, repo_id: str, kind: Kind, parent: str) -> None:
    """Deletes the repository made a moment ago, if nothing has been committed to it since."""
    if api.repo_info(repo_id, repo_type=kind.repo_type).sha == parent:
        api.delete_repo(repo_id, repo_type=kind.repo_type)


def changing_variables(api: HfApi, repo_id: str, variables: Mapping[str, str]) -> dict[str, str | None]:
    """Those of a Space's variables that are to change, as they are now; None for one that is not there."""
    found = {name: variable.value for name, variable in retry(api.get_space_variables, repo_id).items()}
    return {name: found.get(name) for name, value in variables.items() if found.get(name) != value}


def restore_variables(api: HfApi, repo_id: str, before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            api.delete_space_variable(repo_id, name)
        else:
            api.add_space_variable(repo_id, name, value)
