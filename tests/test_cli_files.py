"""Which files the command reads, what it says it leaves out, and what its results are called."""

import os

import pytest

from command_dacse.files import Job, output_format, plan_jobs
from command_dacse.search import AUDIO_SUFFIXES, is_special


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    """Empty files: planning looks at names alone."""
    for name in names:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        open(name, "wb").close()


def jobs(*arguments) -> dict[str, str]:
    plan = plan_jobs(*arguments)
    assert not plan.problems
    return {job.source: job.target for job in plan.jobs}


def test_a_folder_says_once_what_it_leaves_out():
    make("in/a.wav", "in/b.TXT", "in/c.txt", "in/sub/d.jpg", "in/no ending", "in/._a.wav", "in/.hidden/e.wav")
    make("in/f.enhanced.wav")
    os.mkfifo("in/pipe.wav")
    plan = plan_jobs(["in"], None, None)
    assert plan.jobs == [Job("in/a.wav", "in/a.enhanced.wav")] and not plan.problems
    assert plan.notes == [
        "in: left out other kinds: 4 (2 .txt, 1 without ending, 1 .jpg); hidden: 2 (.hidden/, ._a.wav); "
        "results of an earlier run: 1 (f.enhanced.wav); pipes or devices: 1 (pipe.wav)"
    ]


def test_many_names_are_cut_short_and_a_folder_that_leaves_nothing_out_says_nothing():
    make(*(f"in/.{letter}.wav" for letter in "abcde"), "in/a.wav", "out/b.wav")
    assert plan_jobs(["in"], "o", None).notes == ["in: left out hidden: 5 (.a.wav, .b.wav, .c.wav, .d.wav, ...)"]
    assert plan_jobs(["out"], "o", None).notes == []


def test_linked_folders_are_searched_and_loops_are_named():
    make("elsewhere/b.wav", "in/a.wav", "in/sub/c.wav")
    os.symlink("../elsewhere", "in/linked")
    os.symlink("..", "in/sub/loop")
    os.symlink("sub", "in/another way")
    os.symlink("../elsewhere", "in/second link")
    assert jobs(["in"], "out", None) == {
        "in/a.wav": "out/a.wav",
        "in/linked/b.wav": "out/linked/b.wav",
        "in/sub/c.wav": "out/sub/c.wav",
    }
    (note,) = plan_jobs(["in"], "out", None).notes
    assert note == "in: left out links to folders that are searched already: 3 (another way, second link, sub/loop)"


def test_a_link_to_itself_is_found_as_a_file_and_as_nothing_worse():
    make("in/a.wav")
    os.symlink("loop.wav", "in/loop.wav")
    assert jobs(["in"], "out", None) == jobs(["in/*"], "out", None)
    assert jobs(["in"], "in/out", None) == {"in/a.wav": "in/out/a.wav", "in/loop.wav": "in/out/loop.wav"}


def test_a_folder_that_cannot_be_read_is_a_failure_and_named(monkeypatch):
    make("in/a.wav", "in/secret/b.wav")
    scandir = os.scandir

    def refuse(path):  # root, whom tests may run as, is refused nothing
        if os.path.basename(path) == "secret":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    plan = plan_jobs(["in"], "out", None)
    assert [job.source for job in plan.jobs] == ["in/a.wav"]
    assert plan.problems == {"in/secret": "folder cannot be read (Permission denied)"}


def test_what_phones_browsers_and_recorders_write_is_found_in_a_folder():
    names = (
        "memo.m4a voice.amr note.opus clip.webm call.mp4 film.MOV old.wma track.aac a.3gp b.MP3 c.W64 d.caf".split()
    )
    make(*(f"in/{name}" for name in names))
    assert len(jobs(["in"], "out", None)) == len(names)
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in AUDIO_SUFFIXES)


def test_equal_names_with_other_endings_get_results_of_their_own():
    make("in/a.wav", "in/a.mp3", "in/b.flac", "in/b.m4a", "in/c.ogg")
    assert jobs(["in"], "out", None) == {
        "in/a.wav": "out/a.wav",
        "in/a.mp3": "out/a.mp3.wav",
        "in/b.flac": "out/b.flac.wav",
        "in/b.m4a": "out/b.m4a.wav",
        "in/c.ogg": "out/c.wav",
    }
    assert jobs(["in"], None, "flac")["in/b.m4a"] == "in/b.m4a.enhanced.flac"
    assert jobs(["in"], None, "flac")["in/c.ogg"] == "in/c.enhanced.flac"


def test_equal_names_in_several_folders_keep_as_much_of_the_folders_as_tells_them_apart():
    make("talks/x/a.mp3", "talks/y/a.mp3", "talks/b.mp3")
    globbed = jobs(["talks/**/*.mp3"], "out", None)
    assert globbed == {
        "talks/b.mp3": "out/b.wav",
        "talks/x/a.mp3": "out/x/a.wav",
        "talks/y/a.mp3": "out/y/a.wav",
    }
    assert jobs(["talks/b.mp3", "talks/x/a.mp3", "talks/y/a.mp3"], "out", None) == globbed  # as a shell gives them


def test_results_that_cannot_be_told_apart_fail_alone():
    make("in/a.mp3", "in/a.wav", "in/a.mp3.wav", "in/b.wav")
    plan = plan_jobs(["in"], "out", None)
    assert [job.source for job in plan.jobs] == ["in/a.mp3", "in/a.wav", "in/b.wav"]
    assert plan.problems == {
        "in/a.mp3.wav": "its result would be out/a.mp3.wav, as that of in/a.mp3; enhance it apart"
    }


def test_a_file_given_twice_is_enhanced_once():
    make("in/a.wav")
    assert jobs(["in/a.wav", "in", "./in/a.wav"], "out", None) == {"in/a.wav": "out/a.wav"}


def test_pipes_and_devices_are_inputs_and_outputs(folder):
    make("a.wav")
    os.mkfifo("pipe")
    assert is_special("pipe") and is_special("/dev/null") and not is_special("a.wav") and not is_special("missing")
    assert jobs(["pipe"], "out.wav", None) == {"pipe": "out.wav"}
    assert jobs(["a.wav"], "pipe", None) == {"a.wav": "pipe"}
    assert jobs(["a.wav"], "/dev/null", None) == {"a.wav": "/dev/null"}
    assert jobs(["a.wav"], "/dev/stdout", None) == {"a.wav": "-"}
    assert jobs(["-", "a.wav"], "out", None) == {"-": "out/stdin.wav", "a.wav": "out/a.wav"}
    with pytest.raises(ValueError, match="'pipe' is no file that a result could lie beside; pass -o"):
        plan_jobs(["pipe"], None, None)
    assert [output_format(name, None) for name in ("pipe", "x.FLAC", "-")] == ["wav", "flac", "wav"]
    assert output_format("x.wav", "mp3") == "mp3"


NAMES = {
    "longest": "音" * 83 + ".wav",  # 253 bytes
    "not UTF-8": os.fsdecode(b"caf\xe9.wav"),
    "brackets": "[red]takes [b].wav",
    "dashes": "--help.wav",
    "line end": "two\nlines.wav",
    "dots": "a...wav.wav",
}


@pytest.mark.parametrize("kind", NAMES)
def test_any_name_is_found_and_kept(kind):
    name = NAMES[kind]
    make(f"in/{name}")
    assert jobs(["in"], "out", None) == {f"in/{name}": f"out/{name}"}


def test_a_file_that_is_called_like_standard_input_is_a_file():
    make("-")
    assert jobs(["./*"], "out/", None) == {"./-": "out/-.wav"}
