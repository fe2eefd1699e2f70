"""The report in a real browser: what its reader sees on a screen, on a phone and on paper."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure

from common.compare.report import Block, page

NAME = "<script>document.title = 'run'</script>"
MEASURE = """<script>
addEventListener("load", () => {
    const found = {
        window: innerWidth, across: document.documentElement.scrollWidth, scripts: document.scripts.length,
        title: document.title, said: document.body.innerText,
        cells: [...document.querySelectorAll("td")].map(one => one.getBoundingClientRect().width),
        pictures: [...document.images].map(one => [one.naturalWidth, one.getBoundingClientRect().width]),
    };
    parent.document.documentElement.setAttribute("data-found", JSON.stringify(found));
});
</script>"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    return found


def call(browser, folder, *words):
    # a profile of its own: another Chromium of this user would answer in its place
    start = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder}/me",
    ]
    done = subprocess.run([*start, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def look(browser, file, width):
    """What a window of this width shows: a frame, since Chromium's own windows are 500 pixels wide at least.

    The page in it ends with a script that measures it.
    """
    measured = html.escape(file.read_text().replace("</body>", MEASURE + "</body>"))
    frame = file.with_name(f"frame-{width}.html")
    frame.write_text(
        f'<!doctype html><iframe width="{width}" height="900" frameborder="0" srcdoc="{measured}"></iframe>'
    )
    text = call(browser, file.parent, "--window-size=1400,900", "--dump-dom", frame.as_uri())
    return json.loads(html.unescape(re.search('data-found="([^"]*)"', text)[1]))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with every kind of block, names that are programs, and words longer than a phone is wide."""
    folder = tmp_path_factory.mktemp("report")
    long = "/a/long/folder/without/blanks" * 10
    blocks = [Block("heading", f"Does it help? {NAME}", level=1), Block("text", long), Block("code", long + NAME)]
    blocks += [Block("list", items=[NAME, f"**better** {long}"])]
    blocks += [Block("table", header=["labels", *"abcdefgh"], rows=[[NAME, *["+0.123 (0.100 to 0.200)"] * 8]])]
    blocks += [Block("table", header=["choice", "reason"], rows=[["crop", "the planned network fits it " * 20]])]
    for inches, name in ((6, "x"), (12, "x"), (12, "cases")):
        Figure((inches, 3), dpi=110).savefig(folder / f"{inches}.png")
        blocks.append(Block("figure", NAME, items=[name], picture=(folder / f"{inches}.png").read_bytes()))
    (folder / "report.html").write_text(page(blocks, NAME))
    return folder / "report.html"


@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_the_window_and_runs_nothing_that_a_name_says(browser, report, width):
    found = look(browser, report, width)
    assert found["window"] == width >= found["across"]
    assert found["scripts"] == 1 and found["title"] == NAME, "the script that measures is the only one"
    assert found["said"].count(NAME) >= 4
    natural, shown = zip(*found["pictures"], strict=True)
    assert natural == (660, 1320, 1320)
    assert shown[0] <= width and shown[1] >= 600, "the wide picture is to be read, by moving it in its box"
    assert shown[2] <= width, "masks side by side are seen at once"
    assert 200 < found["cells"][-1] < width, "a long text is broken into lines"


def test_it_prints(browser, report):
    file = report.with_name("report.pdf")
    call(browser, report.parent, "--no-pdf-header-footer", f"--print-to-pdf={file}", report.as_uri())
    content = file.read_bytes()
    assert content.startswith(b"%PDF")
    boxes = {tuple(map(float, box.split()[2:])) for box in re.findall(rb"/MediaBox \[([^\]]*)\]", content)}
    assert 1 <= len(re.findall(rb"/Type /Page\b", content)) <= 3 and len(boxes) == 1
