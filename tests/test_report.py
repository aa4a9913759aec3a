"""Reports: tables that say what the summary says, and plots."""

import pytest
from matplotlib.image import imread

from evaluation_dacse.report import markdown, paper_table, score_table, write_report
from tests.tiny_run import write_run


@pytest.fixture
def summary(tmp_path):
    return write_run(tmp_path)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_hold_the_means_and_intervals_of_the_summary(summary):
    header, _, noisy, clean, dacse = score_table(summary, "overall").splitlines()
    assert cells(header) == ["system", "PESQ ↑"]
    row = summary["systems"]["dacse"]["overall"]["pesq"]
    assert cells(dacse) == [
        "dacse",
        f"**2.65 [{row['low']:.2f}, {row['high']:.2f}]**",
    ]  # the one that enhances is bold
    assert cells(clean)[1].startswith("3.65 [") and cells(noisy)[1].startswith("1.70 [")
    rain = score_table(summary, "rain").splitlines()[-1]
    assert cells(rain)[1].startswith("**2.60 [")


def test_the_report_says_what_was_left_out_and_which_differences_are_sure(summary):
    text = markdown(summary)
    assert "| noisy | pesq: no speech found | 1 |" in text
    assert "| dacse | **+1.00 [+1.00, +1.00]** |" in text  # three clips, the same difference on each
    assert "checksum `abc`" in text and "a computer; Python 3, torch 2. Systems: dacse f00." in text
    assert "Published figures" not in text


def test_the_papers_table_lies_beside_its_own_test_set(summary):
    summary["test_set"]["name"] = "hifitts2-test"
    assert "## Published figures (arXiv 2510.02187)" in markdown(summary)
    rows = [cells(line) for line in paper_table(summary).splitlines()]
    assert rows[0] == ["published", "PESQ ↑"] and ["DAC-SE1", "2.46"] in rows and len(rows) == 7


def test_plots_are_drawn_and_linked(summary, tmp_path):
    report = write_report(tmp_path)
    plots = sorted((tmp_path / "plots").glob("*.png"))
    assert [plot.stem for plot in plots] == ["spectrograms", "speed", "tasks"]
    for plot in plots:
        assert imread(plot).std() > 0.05  # something is drawn
        assert f"(plots/{plot.name})" in report.read_text()
