"""What setup.cfg cannot say: the bundles, which stand beside the package `common`, go into the wheel as part of it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithBundles(build_py):
    """Copies what belongs to each bundle, and nothing that runs have written there, to `common/bundle_files`."""

    def run(self):
        super().run()
        if self.editable_mode:  # finds them beside the package
            return
        target = Path(self.build_lib) / "common" / "bundle_files"
        shutil.rmtree(target, ignore_errors=True)
        for bundle in sorted(path.parent for path in (ROOT / "bundles").glob("*/configs")):
            for part in (*bundle.glob("*.json"), *(bundle / name for name in ("LICENSE", "configs", "docs"))):
                place = target / bundle.name / part.name
                place.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if part.is_dir() else shutil.copyfile)(part, place)


setup(cmdclass={"build_py": BuildWithBundles})
