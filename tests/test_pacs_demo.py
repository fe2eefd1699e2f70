"""The archive of `make pacs-demo`, without the server in front of it."""

from __future__ import annotations

import importlib
import mimetypes
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pacs():
    sys.path.insert(0, str(ROOT / "demo"))
    try:
        yield importlib.import_module("pacs")
    finally:
        sys.path.remove(str(ROOT / "demo"))
        for name in ("pacs", "label", "hostile_requests"):
            sys.modules.pop(name, None)


AFFINE = np.array([[-2.0, 0, 0, 30], [0, -1.5, 0, 20], [0, 0, 3, 10], [0, 0, 0, 1]])


def test_the_series_is_the_volume_and_the_archive_keeps_it(pacs, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra dicom)")
    from common.dicom import find_series

    volume = np.random.default_rng(0).integers(0, 2001, (9, 7, 5)).astype(np.int16)
    volume[0, 0, 0] = 2000
    nib.save(nib.Nifti1Image(volume, AFFINE), tmp_path / "scan.nii.gz")
    study, _ = pacs.write_study(tmp_path / "scan.nii.gz", tmp_path / "series", 1)
    series = find_series(tmp_path / "series")
    np.testing.assert_allclose(series.affine[:3, 3], (AFFINE @ [0, 0, 0, 1])[:3], atol=1e-4)
    stored = np.stack([pydicom.dcmread(file).pixel_array.T for file in series.files], -1)
    np.testing.assert_array_equal(stored, volume)

    if any("Orthanc" in what or "plug-in" in what for what in pacs.missing()):
        pytest.skip(f"no archive: {'; '.join(pacs.missing())}")
    with pacs.Archive(tmp_path / "orthanc") as archive:
        assert archive.url.startswith("http://127.0.0.1:")
        assert archive.store([Path(file) for file in series.files]) == 5
        assert archive.segmentations(study) == []
    assert archive.process.poll() is not None


def test_label_maps_are_laid_by_the_frames_positions(pacs, tmp_path):
    """A DICOM SEG of our own writing, whose frames need not come in the order of the slices."""
    pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")
    import pydicom
    from monai.data import MetaTensor

    from common.dicom import find_series
    from common.transforms import KeepFolderTree, SaveDicomSegd

    labels = np.zeros((9, 7, 5), np.uint8)
    labels[2:4, 1:3, 1:4], labels[5:8, 3:6, 2] = 1, 2
    nib.save(nib.Nifti1Image(labels.astype(np.int16) + 1, AFFINE), tmp_path / "scan.nii.gz")
    pacs.write_study(tmp_path / "scan.nii.gz", tmp_path / "series", 1)
    series = find_series(tmp_path / "series")
    pred = MetaTensor(labels[None], affine=series.affine, meta={"filename_or_obj": str(tmp_path / "series")})
    layout = KeepFolderTree(str(tmp_path / "out"), str(tmp_path), postfix="seg", extension=".dcm")
    SaveDicomSegd("pred", layout, {1: "one", 2: "two"}, "test")({"pred": pred})
    [file] = (tmp_path / "out").rglob("*.dcm")
    found = pacs.labels_of(pydicom.dcmread(file), labels.shape, series.affine)
    np.testing.assert_array_equal(found, labels)


class Viewer(ThreadingHTTPServer):
    """OHIF as MONAI Label ships it, with the archive behind it, as Label's server has it."""

    def __init__(self, pages: Path, archive: str) -> None:
        self.pages, self.archive = pages, archive
        super().__init__(("127.0.0.1", 0), ViewerRequest)
        self.port = self.server_address[1]

    def __enter__(self) -> Viewer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class ViewerRequest(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.removeprefix("/proxy/dicom/wado/").removeprefix("/proxy/dicom/qido/")
        if path != self.path:
            request = Request(f"{self.server.archive}/dicom-web/{path}", headers={"Accept": self.headers["Accept"]})
            try:
                with urlopen(request, timeout=60) as answer:
                    status, kind, content = answer.status, answer.headers["Content-Type"], answer.read()
            except HTTPError as error:
                status, kind, content = error.code, "text/plain", b""
        else:
            file = self.server.pages / urlsplit(path).path.removeprefix("/ohif/")
            file = file if file.is_file() else self.server.pages / "index.html"
            status, kind, content = 200, mimetypes.guess_type(file)[0] or "application/octet-stream", file.read_bytes()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        pass


@pytest.mark.slow
def test_the_browser_tells_of_script_errors(pacs, tmp_path):
    pytest.importorskip("websocket", reason="websocket-client is not installed (extra dev)")
    if not pacs.program("chromium"):
        pytest.skip("no browser: chromium is not installed")
    with pacs.Browser(tmp_path / "browser") as browser:
        browser.call("Page.navigate", url="data:text/html,<script>throw new Error('broken')</script>")
        assert browser.wait("document.readyState == 'complete'", 60)
        assert browser.errors == ["Error: broken"]


@pytest.mark.slow
def test_ohif_shows_a_segmentation_of_ours_without_a_script_error(pacs, tmp_path):
    """A series and the DICOM SEG that inference.json writes, in an archive, seen in a browser."""
    pytest.importorskip("websocket", reason="websocket-client is not installed (extra dev)")
    pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")
    monailabel = pytest.importorskip("monailabel", reason="monailabel is not installed (tests/monai_label.txt)")
    from monai.data import MetaTensor

    from common.dicom import find_series
    from common.transforms import KeepFolderTree, SaveDicomSegd

    lacking = [what for what in pacs.missing() if "itkimage2segimage" not in what]
    lacking += [] if pacs.program("chromium") else ["chromium"]
    if lacking:
        pytest.skip(f"no archive or no browser: {'; '.join(lacking)}")
    draw = np.random.default_rng(0)
    labels = np.zeros((48, 40, 16), np.uint8)
    labels[8:20, 8:30, 3:13], labels[26:40, 10:25, 5:11] = 1, 2
    scan = draw.integers(200, 400, labels.shape).astype(np.int16) + 500 * labels.astype(np.int16)
    nib.save(nib.Nifti1Image(scan, AFFINE), tmp_path / "scan.nii.gz")
    folder = tmp_path / "series"
    study, _ = pacs.write_study(tmp_path / "scan.nii.gz", folder, 1)
    pred = MetaTensor(labels[None], affine=find_series(folder).affine, meta={"filename_or_obj": str(folder)})
    layout = KeepFolderTree(str(tmp_path / "out"), str(tmp_path), postfix="seg", extension=".dcm")
    SaveDicomSegd("pred", layout, {1: "liver", 2: "left kidney"}, "test")({"pred": pred})
    files = [*folder.iterdir(), *(tmp_path / "out").rglob("*.dcm")]
    pages = Path(monailabel.__file__).parent / "endpoints" / "static" / "ohif"
    outcome = pacs.Outcome()
    with pacs.Archive(tmp_path / "orthanc") as archive, Viewer(pages, archive.url) as viewer:
        assert archive.store(files) == 17
        found = {"study": study, "folder": folder, "found": ["liver", "left kidney"]}
        pacs.look(viewer, found, tmp_path, outcome)
    failed = [f"{name}: {detail}" for name, passed, detail in outcome.checks if not passed]
    assert len(outcome.checks) == 5 and not failed, failed
    assert (tmp_path / "ohif.png").stat().st_size > 20_000
