"""The container image installs what the project needs, at the versions that the tests ran with."""

from __future__ import annotations

import re
import tomllib

from tests.stack import ROOT

PIN = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / name).read_text()))


def needed() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["ha"]]
    return {re.split(r"[\[<>=!~; ]", line)[0].replace("_", "-").lower() for line in lines}


def test_the_image_has_every_dependency():
    missing = needed() - pins("requirements.image.lock").keys()
    assert not missing, "make it anew: .ci/image-lock"


def test_versions_are_those_of_the_tests():
    tested = pins("requirements.lock")
    image = pins("requirements.image.lock")
    different = {
        name: (version, tested[name]) for name, version in image.items() if tested.get(name, version) != version
    }
    assert not different, "make it anew: .ci/image-lock"
