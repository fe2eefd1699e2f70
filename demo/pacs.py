"""A picture archive, MONAI Label in front of it, and OHIF in a browser. `make pacs-demo`.

Orthanc with its DICOMweb plug-in gets DICOM series made from the sample. MONAI Label reads its studies from there. The
client asks for masks and compares them with those of `inference.json`. It has them stored as DICOM SEG, reads these
from the archive, compares again, and trains on them. Chromium opens a study in OHIF. All servers listen on 127.0.0.1.

It runs in Label's own environment and needs the programs `Orthanc` (Debian: orthanc, orthanc-dicomweb) and, for the
picture, `chromium`.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import label as label_demo
from label import (
    APP,
    ENVIRONMENT,
    ROOT,
    Outcome,
    Server,
    free_port,
    own_inference,
    repair_environment,
    train,
    train_and_pack,
    words,
)

COLOURS = {1: (59, 125, 216), 2: (44, 160, 44), 3: (242, 177, 52), 4: (154, 160, 166)}
PLUGINS = Path("/usr/share/orthanc/plugins")


def program(*names: str) -> str | None:
    """Return the path of the first program that is installed."""
    places = os.pathsep.join([ENVIRONMENT["PATH"], "/usr/sbin", "/usr/local/sbin"])
    return next((found for name in names if (found := shutil.which(name, path=places))), None)


def missing() -> list[str]:
    """Say which programs are missing."""
    plugin = any(PLUGINS.glob("*OrthancDicomWeb*"))
    return [
        *([] if program("Orthanc") else ["Orthanc (Debian: orthanc)"]),
        *([] if plugin else [f"its DICOMweb plug-in in {PLUGINS} (Debian: orthanc-dicomweb)"]),
        *(
            []
            if program("itkimage2segimage")
            else ["itkimage2segimage, with which Label writes DICOM SEG (pip: dcmqi)"]
        ),
    ]


class Archive:
    """Orthanc in a separate process, reachable only from this machine, without a DICOM port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "demo",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomServerEnabled": False,
            "Plugins": [str(path) for path in PLUGINS.glob("*OrthancDicomWeb*")],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Host": "127.0.0.1", "Ssl": False},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings, indent=4))
        self.log = (folder / "orthanc.log").open("w")
        command = [str(program("Orthanc")), str(folder / "orthanc.json")]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True)

    def __enter__(self) -> Archive:
        import requests

        end = time.time() + 60
        while time.time() < end and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/dicom-web/studies", timeout=5).status_code == 200:
                    return self
            except OSError:
                time.sleep(0.5)
        self.__exit__()
        raise SystemExit(f"Orthanc did not start; its log is {self.log.name}.")

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(30)
        self.log.close()

    def store(self, files: list[Path]) -> int:
        """Store instances; return how many the archive took."""
        import requests

        taken = [requests.post(f"{self.url}/instances", data=path.read_bytes(), timeout=60) for path in files]
        return sum(answer.status_code == 200 for answer in taken)

    def segmentations(self, study: str) -> list[Any]:
        """Find the DICOM SEG files of a study by DICOMweb, and read them with pydicom from the archive's own files."""
        import pydicom
        import requests

        asked = {"Modality": "SEG"}
        series = requests.get(f"{self.url}/dicom-web/studies/{study}/series", params=asked, timeout=60).json()
        found = []
        for one in series:
            uid = one["0020000E"]["Value"][0]
            query = {"Level": "Instance", "Query": {"SeriesInstanceUID": uid}}
            for key in requests.post(f"{self.url}/tools/find", json=query, timeout=60).json():
                content = requests.get(f"{self.url}/instances/{key}/file", timeout=60).content
                found.append(pydicom.dcmread(io.BytesIO(content)))
        return found


def write_study(image: Path, folder: Path, number: int) -> tuple[str, str]:
    """Write a NIfTI file as an axial MR series of whole numbers; return the UIDs of study and series."""
    import nibabel as nib
    import numpy as np
    from pydicom.uid import generate_uid

    from tools.dicom_series import write_series

    scan = nib.load(image)
    volume = np.asarray(scan.dataobj, dtype=np.float64)
    whole = np.rint(volume * (2000 / volume.max())).clip(0)
    study, series = generate_uid(), generate_uid()
    tags = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "StudyID": str(number)}
    tags |= {"PatientID": f"SAMPLE{number}", "PatientName": f"Sample^{number}"}
    tags |= {"StudyDate": "20260101", "StudyTime": "120000", "StudyDescription": "sample", "Manufacturer": "none"}
    tags |= {"SeriesDescription": "synthetic T1", "ImageType": ["DERIVED", "PRIMARY"]}
    tags |= {"WindowCenter": 900, "WindowWidth": 1800}
    write_series(folder, whole, scan.affine, tags)
    return study, series


def labels_of(segmentation: Any, shape: tuple[int, ...], affine: Any) -> Any:
    """Build the label map of a DICOM SEG on a grid in NIfTI's coordinates, each frame by its own position."""
    import numpy as np

    frames = np.atleast_3d(segmentation.pixel_array)
    frames = frames if frames.shape[0] == int(segmentation.NumberOfFrames) else segmentation.pixel_array[None]
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    found = np.zeros(shape, np.uint8)
    inverse = np.linalg.inv(affine)
    for frame, group in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        orientation = getattr(group, "PlaneOrientationSequence", None) or shared.PlaneOrientationSequence
        spacing = (getattr(group, "PixelMeasuresSequence", None) or shared.PixelMeasuresSequence)[0].PixelSpacing
        cosines = np.array(orientation[0].ImageOrientationPatient, float).reshape(2, 3)
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        rows, columns = np.nonzero(frame)
        lps = (
            position
            + np.outer(columns, cosines[0] * float(spacing[1]))
            + np.outer(rows, cosines[1] * float(spacing[0]))
        )
        places = (inverse @ np.c_[lps * [-1, -1, 1], np.ones(len(lps))].T)[:3]
        voxels = np.rint(places).astype(int)
        assert np.abs(places - voxels).max(initial=0) < 0.05, "a frame lies off the grid"
        # Label numbers the segments of a mask by their order; the labels' own numbers are in their descriptions.
        found[tuple(voxels)] = number
    return found


def ask(
    server: Server, archive: Archive, name: str, studies: list[dict], where: dict[str, Path], outcome: Outcome
) -> None:
    """Infer, store as DICOM SEG, read from the archive, and compare with `inference.json` voxel by voxel."""
    import nibabel as nib
    import numpy as np

    equal = stored = same = 0
    for number, study in enumerate(studies):
        own = nib.load(next((where["own"] / name).rglob(f"{study['folder'].name}*_seg.nii.gz")))
        expected = np.asarray(own.dataobj)
        started = time.time()
        status, answer = server.infer(name, study["series"])
        if status != 200:
            outcome.check(f"{name}: /infer of a series", False, f"{status} {words(answer)}")
            continue
        study["seconds"] = time.time() - started
        mask_file = where["output"] / "masks" / name / f"{study['folder'].name}.nii.gz"
        mask_file.parent.mkdir(parents=True, exist_ok=True)
        mask_file.write_bytes(answer)
        mask = nib.load(mask_file)
        # Label reads series through SimpleITK, whose slices may run the other way: compare in one orientation.
        ours, theirs = (np.asarray(nib.as_closest_canonical(one).dataobj) for one in (mask, own))
        equal += np.array_equal(ours, theirs)
        outcome.check(f"{name}: a mask has more than one class", len(np.unique(ours)) > 1, str(np.unique(ours)))
        present = [int(value) for value in np.unique(expected) if value]
        study["found"] = [study["names"][value] for value in present]
        info = [{"name": study["names"][value], "model_name": name, "color": COLOURS[value]} for value in present]
        with mask_file.open("rb") as stream:
            status, answer = server.request(
                "PUT",
                f"/datastore/label?image={study['series']}&tag=final",
                files={"label": (mask_file.name, stream)},
                data={"params": json.dumps({"label_info": info})},
            )
        stored += status == 200
        if status != 200:
            outcome.check(f"{name}: the mask is stored", False, f"{status} {words(answer)}")
            continue
        found = archive.segmentations(study["study"])
        study["segmentation"] = str(found[-1].SeriesInstanceUID) if found else ""
        again = [labels_of(one, expected.shape, own.affine) for one in found]
        # segment k of the file is the k-th class that the mask has
        order = np.array([0, *present])
        same += any(np.array_equal(order[one], expected) for one in again)
        outcome.check(f"{name}: study {number} has one DICOM SEG", len(found) == 1, f"{len(found)} found")
    count = len(studies)
    outcome.check(f"{name}: voxels of series are those of inference.json", equal == count, f"{equal} of {count}")
    outcome.check(f"{name}: masks are stored in the archive", stored == count, f"{stored} of {count}")
    outcome.check(f"{name}: the archive's DICOM SEG have these voxels", same == count, f"{same} of {count}")
    settings = {"device": "cpu", "multi_gpu": False, "save_label": True, "label_tag": "original", "max_workers": 1}
    status, answer = server.request("POST", f"/batch/infer/{name}?images=all&run_sync=true", json=settings)
    copies = 0
    for study in studies if status == 200 else ():
        status, answer = server.get(f"/datastore/label?label={study['series']}&tag=original")
        mask = where["output"] / "masks" / name / f"{study['folder'].name}.nii.gz"
        (where["output"] / "batch.nii.gz").write_bytes(answer if status == 200 else b"")
        copies += status == 200 and np.array_equal(
            np.asarray(nib.load(where["output"] / "batch.nii.gz").dataobj), np.asarray(nib.load(mask).dataobj)
        )
    outcome.check(f"{name}: /batch/infer gives the same masks", copies == count, f"{status}, {copies} of {count}")


class Browser:
    """Headless Chromium by its own protocol: open a page, wait, click, take a picture, list what went wrong."""

    def __init__(self, profile: Path) -> None:
        import requests
        from websocket import create_connection

        port = free_port()
        command = [str(program("chromium", "chromium-browser", "google-chrome")), "--headless=new", "--no-sandbox"]
        command += [
            "--use-gl=angle",
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
            "--ignore-gpu-blocklist",
        ]
        command += [f"--remote-debugging-port={port}", "--remote-allow-origins=*", f"--user-data-dir={profile}"]
        # no request leaves this machine
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-background-networking"]
        command += ["--window-size=1600,900", "--no-first-run", "--disable-component-update", "about:blank"]
        self.log = profile.with_suffix(".log").open("w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True)
        end, pages = time.time() + 60, []
        while not pages and time.time() < end:
            try:
                listed = requests.get(f"http://127.0.0.1:{port}/json", timeout=5).json()
                pages = [page for page in listed if page["type"] == "page"]
            except OSError:
                time.sleep(0.5)
        self.socket = create_connection(pages[0]["webSocketDebuggerUrl"], timeout=600, suppress_origin=True)
        self.count, self.errors = 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)
        self.log.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]).splitlines()[0])
            if message.get("id") == self.count:
                return message.get("result", {})

    def value(self, expression: str) -> Any:
        asked = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return asked.get("result", {}).get("value")

    def wait(self, expression: str, seconds: float) -> bool:
        end = time.time() + seconds
        while time.time() < end:
            if self.value(expression):
                return True
            time.sleep(1)
        return False

    def click(self, place: str, count: int = 1) -> bool:
        """Click once or twice in the middle of the element that the expression finds."""
        middle = "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2];"
        box = self.value(f"(() => {{ const e = {place}; if (!e) return null; {middle} }})()")
        if not box:
            return False
        for number in range(1, count + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=number)
        return True

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def look(server: Server, study: dict, output: Path, outcome: Outcome) -> None:
    """Open a study in OHIF, load its segmentation, take a picture of the middle slice."""
    page = f"http://127.0.0.1:{server.port}/ohif/viewer?StudyInstanceUIDs={study['study']}"
    hide = "[...document.querySelectorAll('button')].find(e => /confirm and hide/i.test(e.innerText))"
    row = (
        "[...document.querySelectorAll('div')].filter(e => /^SEG\\b/.test(e.innerText.trim()))"
        ".sort((a, b) => a.innerText.length - b.innerText.length)[0]"
    )
    yes = "document.querySelector('[data-cy=yes-hydrate-btn]')"
    with Browser(output / "browser") as browser:
        browser.call("Page.navigate", url=page)
        shown = browser.wait("document.querySelectorAll('canvas').length > 0", 90)
        outcome.check("OHIF shows the study", shown, str(browser.value("document.title")))
        browser.wait(f"!!({hide})", 20)
        browser.click(hide)
        outcome.check("OHIF lists the segmentation", browser.wait(f"!!({row})", 60))
        browser.click(row, 2)
        outcome.check("OHIF loads the segmentation", browser.wait(f"!!({yes})", 60))
        browser.click(yes)
        time.sleep(8)
        for _ in range(len(list(study["folder"].iterdir())) // 2):
            browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=900, y=400, deltaX=0, deltaY=100)
        browser.click("document.querySelector('[data-cy=panelSegmentation-btn]')")
        time.sleep(5)
        browser.picture(output / "ohif.png")
        text = str(browser.value("document.body.innerText"))
        named = all(name in text for name in study["found"])
        outcome.check("OHIF names the segments", named, ", ".join(study["found"]))
        outcome.check("OHIF has no script error", not browser.errors, "; ".join(browser.errors)[:300])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "pacs_demo", help="folder of all that is written"
    )
    parser.add_argument("--bundle", default="pretrain_once", choices=list(label_demo.BUNDLES))
    parser.add_argument(
        "--epochs", type=int, default=4, help="epochs that the bundle is trained for before it is served"
    )
    parser.add_argument("--studies", type=int, default=2, help="test subjects of the sample that become studies")
    arguments = parser.parse_args()
    lacking = missing()
    if lacking:
        raise SystemExit(f"the demo needs {'; '.join(lacking)}.")
    if not APP.is_dir():
        raise SystemExit(f"there is no {APP}: run this by `make pacs-demo`, in an environment with MONAI Label.")
    started = time.time()
    repair_environment()
    sys.path.insert(0, str(ROOT))
    from common.data import make_sample

    output = arguments.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    print("== the sample as DICOM series", flush=True)
    sample = Path(make_sample())
    where = {"output": output, "own": output / "own"}
    items = json.loads((sample / "structures4.json").read_text())["test"][: arguments.studies]
    names = {1: "cortex", 2: "subcortical grey matter", 3: "white matter", 4: "CSF"}
    studies: list[dict[str, Any]] = []
    for number, item in enumerate(items, 1):
        folder = output / "series" / f"sample{number}"
        study, series = write_study(sample / item["image"], folder, number)
        studies.append({"folder": folder, "study": study, "series": series, "names": names, "found": []})
    outcome, name = Outcome(), arguments.bundle
    print(f"== {name}: train, pack, and infer by itself", flush=True)
    app = output / "app"
    shutil.copytree(APP, app)
    train_and_pack(name, arguments.epochs, output, app / "model", sample)
    own_inference(app / "model" / name, output / "series", where["own"] / name)
    # Label's cache of the archive is for this run only, and the sample's modality is MR.
    ENVIRONMENT["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"] = json.dumps({"Modality": "MR"})
    ENVIRONMENT["MONAI_LABEL_DICOMWEB_CACHE_PATH"] = str(output / "cache")
    ENVIRONMENT["MONAI_LABEL_DICOMWEB_CACHE_EXPIRY"] = "1"
    print("== the archive", flush=True)
    with Archive(output / "orthanc") as archive:
        files = [path for study in studies for path in sorted(study["folder"].iterdir())]
        taken = archive.store(files)
        outcome.check("the archive takes the series", taken == len(files), f"{taken} of {len(files)} instances")
        with Server(app, f"{archive.url}/dicom-web", [name], output / "logs" / "server.log") as server:
            _, information = server.get("/info/")
            outcome.check("/info offers the model", name in information["models"])
            _, listed = server.get("/datastore/")
            outcome.check("the server counts the archive's series", listed.get("total") == len(studies), words(listed))
            ask(server, archive, name, studies, where, outcome)
            if program("chromium", "chromium-browser", "google-chrome"):
                look(server, studies[0], output, outcome)
            else:
                print("   OHIF was not opened: there is no chromium", flush=True)
            train(server, name, app / "model", 0.5, outcome)
    failed = [one for one, passed, _ in outcome.checks if not passed]
    print(f"\n{len(outcome.checks)} checks, {len(failed)} failed, in {(time.time() - started) / 60:.1f} minutes")
    print(output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
