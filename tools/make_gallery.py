"""Make the report in docs/gallery: `python tools/make_gallery.py`, after a change of what reports look like."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import isohub
from isohub.demo.repository import make_repository, test_images

PAGE = Path(__file__).parents[1] / "docs" / "gallery" / "digits.html"
REPO = "git+file:///srv/models/digits"
COMMAND = f"isohub compare {REPO} digits --ref v1 --ref v2 --input images.pt --html digits.html"


def main() -> None:
    """Make it."""
    with tempfile.TemporaryDirectory() as folder:
        repo = make_repository(Path(folder) / "digits")
        images, _ = test_images()
        found = isohub.compare(f"git+file://{repo}", "digits", ["v1", "v2"], images, command=COMMAND)
    # Which machine and which folder it was is nobody's business.
    versions = [replace(version, repo=f"{REPO}@{version.label}") for version in found.versions]
    replace(found, versions=versions, environment={**found.environment, "platform": "Linux"}).save_html(PAGE)


if __name__ == "__main__":
    main()
