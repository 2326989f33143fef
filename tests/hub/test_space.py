"""The Space: its page shows what the package computes, and in a browser keeps users apart and asks nobody else."""

import configparser
import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import STRUCTURES, assert_same_geometry, make_model
from PIL import Image

from coordformer import CoordformerProcessor, StructureError, read_chains
from coordformer.inference.marginals import log_probabilities
from coordformer.model.chain import AMINO_ACIDS
from coordformer.model.design import plan_design

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "hub_cards" / "space"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("space_results", FOLDER / "results.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def content_of(name: str) -> bytes:
    return (STRUCTURES / name).read_bytes()


def scan_of(results, name, **fields):
    model, processor = make_model(num_qk_points=2, **fields), CoordformerProcessor()
    protein = results.read_protein(name, content_of(name), None, ("CA",))
    return model, processor, results.scan(model, processor, protein)


def test_probabilities_are_those_of_masked_residues(results):
    model, processor, found = scan_of(results, "1AS5.cif.gz")
    letters = [AMINO_ACIDS.find(letter) for letter in found.protein.sequence]
    known = np.flatnonzero(np.array(letters) >= 0)
    table = log_probabilities(model, processor, [(found.protein, known)], masked=True)[0]
    expected = np.full(len(letters), np.nan)
    expected[known] = np.exp(table[np.arange(len(known)), np.array(letters)[known]])
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4)
    rows = found.rows()
    assert [row[2] for row in rows] == list(found.protein.sequence)
    assert [row[3] is None for row in rows] == np.isnan(expected).tolist()
    for index, row in enumerate(rows):
        others = [score for letter, score in zip(AMINO_ACIDS, found.scores[index], strict=True) if letter != row[2]]
        assert row[3] is None or row[5] == pytest.approx(max(others), abs=0.006)
    assert rows[0][0] == found.residues.name(0)


@pytest.mark.parametrize(("name", "backbone"), [("1orc.pdb.gz", True), ("pdb1ubi_ca.pdb.gz", False)])
def test_the_picture_is_of_the_atoms_that_were_read(results, name, backbone):
    _, _, found = scan_of(results, name)
    drawn = json.loads(results.picture(found, name, content_of(name), None))
    assert drawn["backbone"] == backbone and len(drawn["colors"]) == len(drawn["labels"]) == len(found.protein)
    atoms = [line for line in drawn["pdb"].splitlines() if line[12:16].strip() == "CA"]
    places = [int(line[22:26]) - 1 for line in atoms]
    assert places == np.flatnonzero(found.protein.observed[:, 0]).tolist()
    points = np.array([[float(line[start : start + 8]) for start in (30, 38, 46)] for line in atoms])
    assert_same_geometry(points, found.protein.coords[places, 0], tolerance=5e-3)
    assert drawn["labels"][0].startswith(f"{found.protein.sequence[0]} {found.residues.name(0)}: ")
    # A likelier residue has a later color of the legend.
    shades = [results.to_hex(results.COLORS(share)) for share in found.probabilities]
    assert drawn["colors"] == shades


def test_a_file_of_several_chains(results):
    content = content_of("1hvr.pdb.gz")
    assert results.chain_ids("1hvr.pdb.gz", content) == (["1HVR_A", "1HVR_B"], [])
    assert results.read_protein("1hvr.pdb.gz", content, "1HVR_B").id == "1HVR_B"
    assert results.read_protein("1hvr.pdb.gz", content, results.WHOLE).chain_names == ("A", "B")
    _, _, found = scan_of(results, "1hvr.pdb.gz")
    chains = {
        line[21] for line in json.loads(results.picture(found, "1hvr.pdb.gz", content, None))["pdb"].splitlines()[:-1]
    }
    assert chains == {"A", "B"}


def test_messages_name_the_file_and_the_fix(results, monkeypatch, tmp_path):
    with pytest.raises(StructureError, match=r"^notes.pdb: "):
        results.chain_ids("notes.pdb", b"no structure\n")
    with pytest.raises(StructureError, match=r"^cut.cif.gz: broken gzip .*get it again"):
        results.chain_ids("cut.cif.gz", content_of("1A8O.cif.gz")[:500])
    monkeypatch.setattr(results, "MAX_RESIDUES", 150)
    with pytest.raises(StructureError, match=r"1HVR has 198 residues, and this page takes 150 at most; choose a chain"):
        results.read_protein("1hvr.pdb.gz", content_of("1hvr.pdb.gz"), results.WHOLE)
    secret = tmp_path / "secret"
    secret.write_text("password")
    for entry, message in (
        ("", "is not one entry"),
        ("1abc 1abd", "is not one entry"),
        (str(secret), "neither a PDB id"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            results.fetch_entry(entry, tmp_path)
        assert "password" not in str(caught.value)


def test_contacts_are_predicted_where_a_head_was_trained(results, tmp_path):
    pytest.importorskip("matplotlib")
    for head, words in ((False, "no contact head, so it predicts no contacts"), (True, "Predicted contacts above")):
        model, processor, found = scan_of(results, "1AS5.cif.gz", contact_head=head)
        if head:
            torch.nn.init.normal_(model.base_model.contact_head.weight)
        assert words in results.draw_contacts(model, processor, found, tmp_path / "contacts.png")
        assert (tmp_path / "contacts.png").read_bytes().startswith(b"\x89PNG")


def test_designs_keep_fixed_residues(results):
    model, processor, found = scan_of(results, "1AS5.cif.gz")
    task = plan_design(found.protein, fixed_residues=f"{found.residues.name(0)}-{found.residues.name(4)}")
    text = results.draw_designs(model, processor, found.protein, task, name="small", count=2, temperature=0.5)
    native, *designs = re.findall(r"^[^>].*$", text, re.MULTILINE)
    assert native == found.protein.sequence and len(designs) == 2 and "model=small" in text
    assert all(sequence[:5] == native[:5] for sequence in designs)


def test_the_folder_is_a_space():
    card = yaml.safe_load((FOLDER / "README.md").read_text().split("---\n")[1])
    assert card["sdk"] == "gradio" and (FOLDER / card["app_file"]).exists()
    assert f"gradio=={card['sdk_version']}\n" in (ROOT / "constraints.txt").read_text()
    assert len(card["short_description"]) <= 60  # the Hub's limit
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    assert "gradio" in setup["options.extras_require"]["space"]
    assert "coordformer[figures]" in (FOLDER / "requirements.txt").read_text()
    viewer = (FOLDER / "3Dmol-min.js").read_bytes()  # that of 3dmol 2.5.5 on npm
    assert hashlib.sha256(viewer).hexdigest() == "f7cc78921ae72e7623e89cdd111434f58c2efddd2ffda1cd212644b406fb8016"


@pytest.fixture(scope="module")
def address():
    """The page on loopback."""
    pytest.importorskip("gradio", reason="pip install -c constraints.txt '.[space]', or make space")
    pytest.importorskip("selenium", reason="pip install -c constraints.txt '.[space]', or make space")
    if not (CHROMIUM and DRIVER):
        pytest.skip("apt install chromium chromium-driver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = os.environ | {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    process = subprocess.Popen([sys.executable, FOLDER / "app.py"], env=settings, cwd=ROOT)
    try:
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


class User:
    """A browser of its own."""

    def __init__(self, address: str, width: int = 1280, height: int = 900) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        flags = (
            "headless=new no-sandbox disable-gpu enable-unsafe-swiftshader disable-background-networking no-first-run"
        )
        for flag in (*flags.split(), "disable-component-update", "disable-sync"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.browser.get(address)
        self.wait(lambda: self.texts("#file input[type=file]"))

    def texts(self, selector: str) -> list[str]:
        return [each.text for each in self.browser.find_elements("css selector", selector)]

    def wait(self, condition, seconds: float = 40) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.texts("#message p")
            time.sleep(0.2)

    def message(self) -> str:
        return " ".join(self.texts("#message p"))

    def upload(self, path: Path) -> None:
        self.browser.find_element("css selector", "#file input[type=file]").send_keys(str(path))
        self.wait(lambda: path.name in self.message())

    def run(self) -> None:
        self.browser.find_element("css selector", "#run").click()

    def finish(self) -> None:
        self.wait(lambda: "Done." in self.message())

    def picture(self) -> np.ndarray:
        """The viewer as the user sees it, bytes (height, width, 3)."""
        viewer = self.browser.find_element("css selector", "#picture .viewer")
        # Below the fold, a screenshot of the element ends where the page does.
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", viewer)
        return np.array(Image.open(io.BytesIO(viewer.screenshot_as_png)).convert("RGB"))

    def colors(self) -> int:
        """Different colors of the picture."""
        return len(np.unique(self.picture().reshape(-1, 3), axis=0))

    def check_picture(self) -> None:
        """What is drawn lies whole within the picture, and is no speck in it."""
        self.wait(lambda: self.colors() > 20)
        drawn = (self.picture() < 255).any(axis=2)
        shares = []
        for axis in (0, 1):
            (places,) = np.nonzero(drawn.any(axis=axis))
            size = drawn.shape[1 - axis]
            assert places[0] > 1 and places[-1] < size - 2, (places, size)
            shares.append((places[-1] - places[0]) / size)
        assert max(shares) > 0.6

    def asked(self) -> set[str]:
        """Hosts that the browser asked."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert urls
        return {url.split("/")[2] for url in urls if not url.startswith(("data:", "blob:", "chrome"))}


@pytest.fixture
def open_page(address):
    users = []

    def visit(**size) -> User:
        users.append(User(address, **size))
        return users[-1]

    yield visit
    for user in users:
        user.browser.quit()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_file_goes_in_and_everything_comes_out(open_page, address, width):
    user = open_page(width=width)
    user.upload(STRUCTURES / "1orc.pdb.gz")
    user.run()
    user.finish()
    assert user.message().startswith("1ORC_A: 71 residues, 64 with coordinates.")
    user.check_picture()
    viewer = user.browser.find_element("css selector", "#picture .viewer")
    assert viewer.get_attribute("data-residues") == "71"
    # Rows are drawn once they are in sight.
    user.browser.execute_script("document.querySelector('#table').scrollIntoView()")
    user.wait(lambda: re.search(r"A1\s+1\s+M\s+0\.\d+", user.texts("#table")[0]))
    for name in ("substitutions", "contacts"):
        picture = user.browser.find_element("css selector", f"#{name} img")
        user.wait(lambda picture=picture: int(picture.get_property("naturalWidth")) > 300)
    text = user.browser.find_element("css selector", "#designs textarea").get_property("value")
    assert text.count(">") == 5 and f"\n{read_chains(STRUCTURES / '1orc.pdb.gz')[0].sequence}\n" in text
    assert "no contact head" in user.texts("#contact_note")[0]
    wide = user.browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width  # nothing to scroll sideways, on a phone either
    assert user.asked() == {address.split("/")[2]}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_long_helix_is_drawn_whole(open_page, width):
    user = open_page(width=width)
    user.upload(STRUCTURES / "5i55.cif.gz")
    user.run()
    user.finish()
    assert user.message().startswith("5I55_A: 22 residues, 22 with coordinates.")
    user.check_picture()


@pytest.mark.slow
def test_what_cannot_be_read_is_said_in_the_page(open_page, tmp_path):
    user = open_page()
    for name, content in (("notes.pdb", b"<b>no structure</b>\n"), ("cut.cif.gz", content_of("1A8O.cif.gz")[:500])):
        (tmp_path / name).write_bytes(content)
        user.upload(tmp_path / name)
        assert user.texts("#message .error") and user.message().startswith(f"{name}: ")
        user.browser.find_element("css selector", "#file button[aria-label='Clear']").click()
        user.wait(lambda: user.message() == "Choose a file.")
    user.run()
    user.wait(lambda: user.message().startswith("There is no file"))
    user.upload(STRUCTURES / "1AS5.cif.gz")  # and the page goes on
    user.run()
    user.finish()


@pytest.mark.slow
def test_two_users_at_once_do_not_mix(open_page, tmp_path):
    users = {"1orc": open_page(), "1AS5": open_page()}
    first = gzip.decompress(content_of("1orc.pdb.gz"))
    (tmp_path / "same.pdb").write_bytes(first)  # both give a file of one name
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "same.pdb").write_bytes(gzip.decompress(content_of("1AS5.cif.gz")))
    users["1orc"].upload(tmp_path / "same.pdb")
    users["1AS5"].upload(tmp_path / "other" / "same.pdb")
    for user in users.values():
        user.run()
    for entry, user in users.items():
        user.finish()
        (chain,) = read_chains(next(STRUCTURES.glob(f"{entry}.*")))
        assert user.message().startswith(f"{chain.id}: {len(chain)} residues")
        text = user.browser.find_element("css selector", "#designs textarea").get_property("value")
        assert text.startswith(f">{chain.id}") and f"\n{chain.sequence}\n" in text
        viewer = user.browser.find_element("css selector", "#picture .viewer")
        user.wait(lambda viewer=viewer, chain=chain: viewer.get_attribute("data-residues") == str(len(chain)))
