"""Old names give our modules, in every form of import, and everything is as before afterwards."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import subprocess
import sys
import textwrap
import types
import warnings

import pytest

import graft.compat.async_worker_optimization as facade
from graft.compat import redirect

OLD = "libs.async_worker_optimization"
FULL = "graft.compat.async_worker_optimization"


@pytest.fixture(autouse=True)
def everything_is_given_back(monkeypatch):
    """A program's modules end with its test, and so does what our finders added."""
    redirect.uninstall()  # Another test of this process may have asked for the app.
    modules, path = dict(sys.modules), list(sys.meta_path)
    yield
    redirect.uninstall()
    assert sys.meta_path == path
    for name in set(sys.modules) - set(modules):
        if name.partition(".")[0] in ("libs", "acme", "async_worker_optimization", "legacy_job"):
            del sys.modules[name]


@pytest.fixture
def libs(tmp_path, monkeypatch):
    """A real package ``libs`` with the old module in it and another beside it."""
    folder = tmp_path / "libs"
    folder.mkdir()
    (folder / "__init__.py").write_text("NAME = 'the real libs'\n")
    (folder / "async_worker_optimization.py").write_text("OLD = True\nclass TaskItem: pass\n")
    (folder / "other.py").write_text("VALUE = 42\n")
    (folder / "user.py").write_text("from .async_worker_optimization import TaskItem\nfrom . import other\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def run(source):
    space = {}
    exec(textwrap.dedent(source), space)
    return space


FORMS = {
    "import as": "import libs.async_worker_optimization as m; TaskItem = m.TaskItem",
    "import dotted": "import libs.async_worker_optimization; TaskItem = libs.async_worker_optimization.TaskItem",
    "from module": "from libs.async_worker_optimization import TaskItem",
    "from package": "from libs import async_worker_optimization; TaskItem = async_worker_optimization.TaskItem",
    "star": "from libs.async_worker_optimization import *",
    "import_module": "import importlib; TaskItem = importlib.import_module('libs.async_worker_optimization').TaskItem",
    "bare": "from async_worker_optimization import TaskItem",
    "bare star": "from async_worker_optimization import *",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_import_gives_our_module_where_there_is_no_such_package(form):
    redirect.install()
    assert run(form)["TaskItem"] is facade.TaskItem


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_import_gives_our_module_where_the_package_exists(form, libs):
    redirect.install()
    assert run(form)["TaskItem"] is facade.TaskItem


def test_a_relative_import_within_the_package_gives_ours_and_its_neighbours_stay(libs):
    redirect.install()
    space = run("from libs import user, other; import libs")
    assert space["user"].TaskItem is facade.TaskItem
    assert (space["other"].VALUE, space["libs"].NAME) == (42, "the real libs")
    assert space["libs"].__file__ == str(libs / "__init__.py")


def test_a_namespace_package_keeps_its_neighbours(libs):
    (libs / "__init__.py").unlink()
    redirect.install()
    space = run("from libs import other, async_worker_optimization as m")
    assert (space["other"].VALUE, space["m"]) == (42, facade)


def test_the_old_name_is_our_module_itself():
    spec = facade.__spec__
    redirect.install()
    module = importlib.import_module(OLD)
    assert module is facade is sys.modules[OLD]
    assert (module.__name__, module.__spec__) == (FULL, spec)
    assert pickle.loads(pickle.dumps(module.TaskItem("a", 1))).__class__.__module__.startswith(FULL)
    assert importlib.util.find_spec("async_worker_optimization") is not None


def test_a_module_that_nobody_replaces_is_still_missing():
    redirect.install()
    with pytest.raises(ModuleNotFoundError, match=r"libs\.something"):
        importlib.import_module("libs.something")
    with pytest.raises(ModuleNotFoundError, match="acme"):
        importlib.import_module("acme")


@pytest.mark.parametrize("item", ["acme.tools.async_worker_optimization", "acme.tools.pools=async_worker_optimization"])
def test_other_places_and_names_may_be_replaced(item):
    redirect.install(item)
    old = item.partition("=")[0]
    assert importlib.import_module(old) is facade
    assert redirect.installed()[old] == FULL


def test_the_facades_full_name_may_be_given_too():
    redirect.install(f"acme={FULL}")
    assert importlib.import_module("acme") is facade


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            "acme.pools",
            "there is no facade named 'pools'; write acme.pools=FACADE with one of: async_worker_optimization, w",
        ),
        (
            "acme.pools=workers",
            "there is no facade named 'workers'; choose one of: async_worker_optimization, worker_pool",
        ),
        ("acme.pools=", "there is no facade named ''; choose one of"),
        ("", "'' does not name a module"),
        ("=executor", "'=executor' does not name a module"),
        ("libs/async_worker_optimization.py", "does not name a module; write package.module, not a path"),
        (FULL, f"{FULL} is one of ours and cannot be replaced"),
    ],
)
def test_what_cannot_be_replaced_is_refused_before_anything_is_installed(item, message):
    with pytest.raises(ValueError) as caught:
        redirect.install("acme.async_worker_optimization", item)
    assert message in str(caught.value)
    assert redirect.installed() == {}


def test_installing_again_changes_nothing_and_may_add():
    redirect.install()
    before, path = redirect.installed(), list(sys.meta_path)
    redirect.install()
    assert (redirect.installed(), sys.meta_path) == (before, path)
    redirect.install("acme=async_worker_optimization")
    assert redirect.installed() == before | {"acme": FULL}


def test_a_module_that_was_imported_before_is_replaced_with_a_warning(libs):
    old = importlib.import_module(OLD)
    parent = sys.modules["libs"]
    with pytest.warns(UserWarning, match=f"{OLD} had been imported before .*install first") as caught:
        redirect.install()
    assert caught[0].filename == __file__
    assert sys.modules[OLD] is facade is parent.async_worker_optimization
    assert OLD in redirect.used()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        redirect.install()
    redirect.uninstall()
    assert sys.modules[OLD] is old is parent.async_worker_optimization


def test_uninstall_restores_modules_and_parents(libs):
    import libs as parent

    modules, names = set(sys.modules), set(vars(parent))
    redirect.install()
    run("import libs.async_worker_optimization, async_worker_optimization")
    redirect.uninstall()
    assert (set(sys.modules), set(vars(parent))) == (modules, names)
    assert importlib.import_module(OLD).OLD
    assert redirect.installed() == {}
    assert redirect.used() == set()


def test_uninstall_takes_the_stand_in_package_away():
    modules = set(sys.modules)
    redirect.install("acme.tools.async_worker_optimization")
    run("import acme.tools.async_worker_optimization, libs.async_worker_optimization")
    redirect.uninstall()
    assert set(sys.modules) == modules
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("acme")


def test_uninstall_leaves_alone_what_others_put_there():
    redirect.install()
    run("import async_worker_optimization")
    another = types.ModuleType("another")
    sys.modules["async_worker_optimization"] = another
    redirect.uninstall()
    assert sys.modules["async_worker_optimization"] is another


def test_uninstalling_what_is_not_installed_does_nothing():
    redirect.uninstall()
    assert redirect.installed() == {}


def test_used_names_are_those_that_were_imported():
    redirect.install("acme=async_worker_optimization")
    assert redirect.used() == set()
    run("from libs import async_worker_optimization")
    run("from libs import async_worker_optimization")
    assert redirect.used() == {OLD}
    assert {OLD, "async_worker_optimization", "acme"} <= redirect.installed().keys()


def test_threads_may_install_and_import_at_once():
    script = """
    import sys, threading
    from graft.compat import redirect
    modules = []
    barrier = threading.Barrier(12)
    def work(place):
        barrier.wait()
        redirect.install(f"acme.p{place}.async_worker_optimization")
        import libs.async_worker_optimization as m
        modules.append(m)
    threads = [threading.Thread(target=work, args=(place,)) for place in range(12)]
    for thread in threads: thread.start()
    for thread in threads: thread.join(30)
    assert len(modules) == 12 and len(set(map(id, modules))) == 1, modules
    assert sum(type(finder).__module__ == "graft.compat.redirect" for finder in sys.meta_path) == 2
    redirect.uninstall()
    assert "libs" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
