"""A clone on PYTHONPATH, never installed: no record of the package is anywhere, and every verb works."""

import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import STRUCTURES, make_model

import coordformer
from coordformer import CoordformerProcessor
from coordformer.hub.export import requirements

ROOT = Path(__file__).parents[2]
NOT_INSTALLED = "import importlib.metadata as m; assert not list(m.distributions(name='coordformer'))"


@pytest.fixture
def run(tmp_path):
    """Runs the command where the clone and all installed packages are but this one."""
    clone, packages = tmp_path / "clone", tmp_path / "packages"
    clone.mkdir()
    for name in ("coordformer", "coordformer_command.py", "hub_cards", "LICENSE", "setup.cfg"):
        (clone / name).symlink_to(ROOT / name)
    packages.mkdir()
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        if "coordformer" not in installed.name:
            (packages / installed.name).symlink_to(installed)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(clone), str(packages)]), "NO_PROXY": "*"}

    def run(*arguments) -> None:
        code = f"{NOT_INSTALLED}; import coordformer_command; raise SystemExit(coordformer_command.main({arguments}))"
        # Without `site`, so that neither site-packages nor what its .pth files name is on the path.
        command = [sys.executable, "-S", "-W", "ignore", "-c", code]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


def test_structures_are_fetched_and_prepared(run, tmp_path):
    (tmp_path / "files").mkdir()
    shutil.copy(STRUCTURES / "1A8O.cif.gz", tmp_path / "files")
    agents = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            agents.append(self.headers["User-Agent"])

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/files"
        run("prepare", "--fetch", "1A8O", "--rcsb_url", url, "--output", "data", "--workers", "1", "--quiet")
    finally:
        server.shutdown()
        server.server_close()
    assert agents == [f"coordformer/{coordformer.__version__}"]
    sheet = json.loads((tmp_path / "data" / "datasheet.json").read_text())
    assert sheet["counts"]["chains"] == 1 and sheet["versions"]["coordformer"] == coordformer.__version__


def test_a_checkpoint_is_exported(run, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    CoordformerProcessor().save_pretrained(tmp_path / "model")
    run("export", "model", "exported", "--no_check", "--quiet")
    exported = tmp_path / "exported"
    assert (exported / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (exported / "requirements.txt").read_text() == requirements()
    assert f"made with coordformer {coordformer.__version__}." in (exported / "README.md").read_text()
