# SPDX-License-Identifier: Apache-2.0
"""What the live page is made with, from npm's registry: `make vendor`.

npm checks each package against the hash in package-lock.json, and runs nothing of it. What is taken stands beside that
file as it was published, with its licence, and with the sums that tests compare it with.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "ctl/web/vendor"
SUMS = "SHA256SUMS"
# As the packages have them -> as they stand here. htm's file has preact in it, so that one's licence comes along.
TAKEN = {
    "cytoscape/dist/cytoscape.min.js": "cytoscape.min.js",
    "cytoscape/LICENSE": "cytoscape.LICENSE",
    "htm/preact/standalone.module.js": "htm-preact.module.js",
    "htm/LICENSE": "htm.LICENSE",
    "preact/LICENSE": "preact.LICENSE",
    "uplot/dist/uPlot.iife.min.js": "uplot.iife.min.js",
    "uplot/dist/uPlot.min.css": "uplot.min.css",
    "uplot/LICENSE": "uplot.LICENSE",
}


def main() -> None:
    """Fetches all of them."""
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(FOLDER / name, work)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        try:
            subprocess.run(command, cwd=work, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"npm did not fetch them: {error}")
        for source, target in TAKEN.items():
            shutil.copyfile(work / "node_modules" / source, FOLDER / target)
    (FOLDER / SUMS).write_text("".join(f"{digest(name)}  {name}\n" for name in sorted(TAKEN.values())))


def digest(name: str) -> str:
    """Of a file here."""
    return hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
