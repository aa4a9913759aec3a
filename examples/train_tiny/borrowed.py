"""Goes on with a run for some minutes on a machine that is lent, with one GPU as well, and hands back what it reached.

    python examples/train_tiny/borrowed.py pack --run runs/tiny --pieces pieces           # where the run is
    python examples/train_tiny/borrowed.py slice --run runs/tiny --pieces pieces --back back \\
        --slice-seconds 540 --data CORPUS --settings gpu --stage corpus codec             # on the lent machine
    python examples/train_tiny/borrowed.py unpack --run runs/tiny --pieces back           # where the run is

The run travels as files of at most 15 MiB, which most ways of copying allow: codec, models, checkpoints and logs, but
neither recordings nor tokens, which are made again where they are wanted. `slice` unpacks the pieces, runs
`examples/train_tiny` with the options that follow for at most so many seconds, and packs what is then there; what is
lost is what came after the last checkpoint, a minute at most with the GPU settings. For a quarter of an hour of a GPU:
nine minutes a slice, of which decoding the recordings and compiling take two, and a second slice while time is left.

The settings `gpu` have the shapes of `cpu` in larger batches, so that either goes on with a run of the other. The
first slice of a run needs no pieces.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PIECE_BYTES = 15 * 2**20
STAYS = ("corpus", "tokens")  # of a run's folder


def pack(run: Path, pieces: Path, piece_bytes: int = PIECE_BYTES) -> None:
    """A run's folder -> numbered pieces of one tar file; their names say how many there are.

    Raises:
        FileExistsError: the folder of the pieces holds something.
    """
    pieces.mkdir(parents=True, exist_ok=True)
    if any(pieces.iterdir()):
        raise FileExistsError(f"{pieces} is not empty; give a new folder")
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for path in sorted(run.iterdir()):
                if path.name not in STAYS:
                    archive.add(path, path.name, filter=finished)
        count = -(-whole.tell() // piece_bytes)
        whole.seek(0)
        for number in range(count):
            (pieces / f"run-{number + 1:03}-of-{count:03}").write_bytes(whole.read(piece_bytes))


def finished(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A file, unless it was half written when the run was stopped."""
    return None if member.name.endswith(".tmp") else member


def unpack(pieces: Path, run: Path) -> None:
    """Pieces -> a run's folder, over what is there.

    Raises:
        FileNotFoundError: there are no pieces, or some are missing.
    """
    found = sorted(pieces.glob("run-*-of-*"))
    count = int(found[0].name.rpartition("-")[2]) if found else 1
    if missing := {f"run-{n + 1:03}-of-{count:03}" for n in range(count)} - {path.name for path in found}:
        raise FileNotFoundError(f"{pieces}: {min(missing)} is missing; copy all pieces of a run")
    run.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as whole:
        for path in found:
            whole.write(path.read_bytes())
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(run, filter="data")


def run_slice(run: Path, pieces: Path, back: Path, seconds: float, options: list[str]) -> int:
    """Goes on with a run of pieces; the exit status is that of `examples/train_tiny`, 75 for unfinished."""
    if pieces.exists():
        unpack(pieces, run)
    command = [sys.executable, HERE, "--output", run, "--slice-seconds", str(seconds), *options]
    status = subprocess.run(command).returncode
    pack(run, back)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["pack", "unpack", "slice"])
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--pieces", type=Path, required=True, help="folder of the pieces")
    parser.add_argument("--back", type=Path, default=Path("back"), help="of a slice: folder of the pieces it leaves")
    parser.add_argument("--slice-seconds", type=float, default=540.0, help="of a slice")
    args, options = parser.parse_known_args()
    if args.task == "slice":
        return run_slice(args.run, args.pieces, args.back, args.slice_seconds, options)
    pack(args.run, args.pieces) if args.task == "pack" else unpack(args.pieces, args.run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
