"""A repository as it is on the Hub, and which of its files dacse published: those its manifest names.

Knows files and commits; knows no model and no card.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from .answers import clear_errors, retry

MANIFEST_NAME = ".dacse.json"
HUBS_OWN = {".gitattributes"}  # in every repository from its first commit


@dataclass(frozen=True)
class Kind:
    """What is published, and the type of repository it makes."""

    name: str
    repo_type: str


MODEL = Kind("model", "model")
ADAPTER = Kind("adapter", "model")
DATASET = Kind("dataset", "dataset")
SPACE = Kind("space", "space")


@dataclass(frozen=True)
class Manifest:
    """Which files of a repository dacse published, and as what."""

    kind: str
    files: frozenset[str]

    def write(self, folder: Path) -> None:
        """Writes the manifest, which names itself, into a folder that is to be published."""
        named = sorted(self.files | {MANIFEST_NAME})
        (folder / MANIFEST_NAME).write_text(json.dumps({"kind": self.kind, "files": named}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """
        Raises:
            ValueError: it is damaged.
        """
        try:
            stated = json.loads(path.read_text())
            return cls(stated["kind"], frozenset(stated["files"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the manifest {MANIFEST_NAME} of the repository is damaged ({error}); "
                "delete it there, then publish with --force"
            ) from error


@dataclass(frozen=True)
class Remote:
    """The head of a repository.

    Args:
        sha: of its commit.
        files: all but the Hub's own.
        manifest: of what dacse published; None in a repository of somebody else.
    """

    sha: str
    files: frozenset[str]
    manifest: Manifest | None

    def is_of(self, kind: Kind) -> bool:
        """Whether dacse published a repository of this kind there, or nobody has put anything there yet."""
        return not self.files or (self.manifest is not None and self.manifest.kind == kind.name)

    def superseded(self, kind: Kind, staged: set[str]) -> list[str]:
        """Files that go when `staged` comes: those published before, or all where the repository is of another."""
        replaced = self.files & self.manifest.files if self.manifest and self.is_of(kind) else self.files
        return sorted(replaced - staged)

    def overwritten(self, kind: Kind, staged: set[str]) -> list[str]:
        """Files that somebody else put there, under names that `staged` has as well."""
        return sorted(self.files & staged - self.manifest.files) if self.manifest and self.is_of(kind) else []

    def added_by_hand(self, kind: Kind, staged: set[str]) -> list[str]:
        """Files that stay: published neither before nor now."""
        return sorted(self.files - staged - set(self.superseded(kind, staged)))


def find_remote(api: HfApi, repo_id: str, kind: Kind) -> Remote | None:
    """The head of a repository; None if there is no such repository."""
    with clear_errors(f"looking at {repo_id}"):
        try:
            info = retry(api.repo_info, repo_id, repo_type=kind.repo_type)
        except RepositoryNotFoundError:
            return None
        files = frozenset(file.rfilename for file in info.siblings) - HUBS_OWN
        manifest = None
        if MANIFEST_NAME in files:
            with TemporaryDirectory(prefix="dacse-") as folder:
                where = {"repo_type": kind.repo_type, "revision": info.sha, "local_dir": folder}
                path = retry(api.hf_hub_download, repo_id, MANIFEST_NAME, **where)
                manifest = Manifest.read(Path(path))
    return Remote(info.sha, files, manifest)


def refuse_foreign(remote: Remote | None, repo_id: str, kind: Kind) -> None:
    """
    Raises:
        FileExistsError: the repository holds something that dacse did not publish, or of another kind.
    """
    if remote is None or remote.is_of(kind):
        return
    names = ", ".join(sorted(remote.files)[:5])
    raise FileExistsError(
        f"the {kind.repo_type} repository {repo_id} exists and holds something else ({names}); "
        "choose another name, or replace its content with --force"
    )


def refuse_to_overwrite(remote: Remote | None, repo_id: str, kind: Kind, staged: set[str]) -> None:
    """
    Raises:
        FileExistsError: files that were added by hand have names of files in `staged`.
    """
    if remote is not None and (names := remote.overwritten(kind, staged)):
        raise FileExistsError(
            f"{', '.join(names[:5])} in {repo_id} was not published by dacse and would be overwritten; "
            "rename or remove it there, or replace it with --force"
        )
