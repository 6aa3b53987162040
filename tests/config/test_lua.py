"""The Lua scripts, which stand beside the modules that run them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import graft
from graft.config import lua
from tests.stack import ROOT

PACKAGE = Path(graft.__file__).parent
SCRIPTS = sorted(
    path.relative_to(PACKAGE).as_posix()
    for folder in ("config", "tasks", "workers", "compat", "scripts")
    for path in (PACKAGE / folder).rglob("*.lua")
)


def counter(tmp_path):
    (tmp_path / "count.lua").write_text("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    return lua.load(str(tmp_path / "module.py"), "count")


def test_a_script_that_redis_has_forgotten_is_sent_again(redis, tmp_path):
    count = counter(tmp_path)
    for total in (2, 4, 6):
        assert count(["lua:count"], [2], redis) == total
        redis.script_flush()
    with redis.pipeline() as pipe:
        count(["lua:count"], [1], pipe)
        pipe.delete("lua:count")
        assert pipe.execute() == [7, 1]


def test_every_script_is_run_by_a_module_beside_it():
    for script in SCRIPTS:
        folder, name = (PACKAGE / script).parent, Path(script).stem
        assert any(f'"{name}"' in path.read_text() for path in folder.glob("*.py")), script


def test_the_wheel_holds_every_script(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(tmp_path), str(ROOT)], check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        assert {f"graft/{script}" for script in SCRIPTS} <= set(packed.namelist())
    assert len(SCRIPTS) > 10
