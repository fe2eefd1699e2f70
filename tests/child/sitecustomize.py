"""Python reads this when a process starts whose PYTHONPATH has this folder, as the children of the tests do.

`import monai` takes along whatever of its optional packages is installed. Two of them, which no child of the tests uses
through MONAI, cost 4 of its 11 seconds: MONAI is told that they are missing, as where they are not installed. Once it
is imported, anyone may import them.
"""

import sys

LARGE = ("mlflow", "transformers")


class NotForMonai:
    @staticmethod
    def find_spec(name, path=None, target=None):
        monai = sys.modules.get("monai")
        if name in LARGE and getattr(getattr(monai, "__spec__", None), "_initializing", False):
            raise ImportError(f"{name} is not imported while MONAI is")


sys.meta_path.insert(0, NotForMonai)
