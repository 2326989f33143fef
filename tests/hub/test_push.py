"""Models travel whole to a stand-in for the Hub and back, whatever breaks off on the way."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import huggingface_hub
import numpy as np
import pytest
import requests
import torch
from conftest import STRUCTURES, make_model
from hub_server import Hub
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoProcessor, Trainer, TrainingArguments

from coordformer import CoordformerProcessor, read_chains
from coordformer.hub.export import export
from coordformer.hub.push import check_folder, push

PACKAGE = Path(__file__).parents[2] / "coordformer"
WEIGHTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(autouse=True)
def fresh_records(hub, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    hub.script.clear()
    hub.holding.clear()
    hub.requests.clear()
    hub.received.clear()


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory):
    """A user's environment; huggingface_hub reads it when it is imported."""
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_write",
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "*",
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    offline = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_TOKEN_PATH"}
    return {name: value for name, value in os.environ.items() if name not in offline} | settings


@pytest.fixture(scope="module")
def run(environment):
    """Call a function of this file in a process with that environment, one for all tests."""
    with mock.patch.dict(os.environ, environment, clear=True), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(os.getpid).result()
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder to push, with weights in two files."""
    made = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    make_model().save_pretrained(made / "model")
    CoordformerProcessor().save_pretrained(made / "model")
    folder = made / "exported"
    export(made / "model", folder, check=False, progress=False)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(tensors, folder, max_shard_size="150KB")
    assert sorted(path.name for path in folder.glob("*.safetensors")) == WEIGHTS
    return folder


@pytest.fixture
def folder(exported, tmp_path, request):
    """A folder of the test's own, with weight files that no other test has sent."""
    folder = shutil.copytree(exported, tmp_path / "model")
    for name in WEIGHTS:
        save_file(load_file(folder / name), folder / name, {"format": "pt", "test": request.node.name})
    return folder


def unite_weights(folder):
    """Other weights, in one file."""
    tensors = {name: values * 2 for file in WEIGHTS for name, values in load_file(folder / file).items()}
    # No other test has sent them: what the Hub has is not sent again.
    save_file(tensors, folder / "model.safetensors", {"format": "pt", "test": folder.parent.name})
    for name in (*WEIGHTS, "model.safetensors.index.json"):
        (folder / name).unlink()


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def predict(model, processor):
    """Logits for a real chain, as an array."""
    chain = read_chains(STRUCTURES / "1A8O.cif.gz")[0]
    with torch.no_grad():
        return model.eval()(**processor(chains=chain)).logits.numpy()


# --- what runs as a user --------------------------------------------------------------------------------------------


def push_as(token, folder, repo_id, endpoint=None, **options):
    """push(), with the library's waits between its attempts left out."""
    changes = [mock.patch.dict(os.environ, {"HF_TOKEN": token}), mock.patch("time.sleep")]
    if endpoint:
        changes.append(mock.patch("huggingface_hub.constants.ENDPOINT", endpoint))
    for one in changes:
        one.start()
    try:
        return push(folder, repo_id, progress=False, **options)
    finally:
        mock.patch.stopall()


def push_forked(folder, repo_id, errors):
    """push() in a process of its own, for which nothing is imported anew; returns its id."""
    if pid := os.fork():
        return pid
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    try:
        push(folder, repo_id, progress=False)
        os._exit(0)
    finally:
        os._exit(1)


def push_model(repo_id):
    torch.manual_seed(0)
    model, processor = make_model(), CoordformerProcessor()
    model.push_to_hub(repo_id)
    processor.push_to_hub(repo_id)
    return predict(model, processor), load_and_predict(repo_id)


def push_trainer(repo_id, output):
    model, processor = make_model(), CoordformerProcessor()
    chain = read_chains(STRUCTURES / "1A8O.cif.gz")[0]
    row = {name: values[0] for name, values in processor(chains=chain).items()}
    row["labels"] = row["input_ids"]
    args = TrainingArguments(
        output, max_steps=1, hub_model_id=repo_id, report_to=[], disable_tqdm=True, logging_steps=1, use_cpu=True
    )
    trainer = Trainer(model, args, train_dataset=[row], processing_class=processor)
    trainer.train()
    trainer.push_to_hub()
    return predict(model, processor), load_and_predict(repo_id)


def load_and_predict(repo_id, revision="main"):
    model = AutoModelForMaskedLM.from_pretrained(repo_id, revision=revision)
    return predict(model, AutoProcessor.from_pretrained(repo_id, revision=revision))


# --- there and back -------------------------------------------------------------------------------------------------


def test_model_push_to_hub(run, hub):
    sent, loaded = run(push_model, "tester/by-model")
    np.testing.assert_array_equal(loaded, sent)
    assert {"config.json", "model.safetensors", "processor_config.json", "README.md"} <= set(
        hub.files("tester/by-model")
    )


def test_trainer_push_to_hub(run, hub, tmp_path):
    sent, loaded = run(push_trainer, "tester/by-trainer", str(tmp_path / "run"))
    np.testing.assert_array_equal(loaded, sent)
    untrained, _ = run(push_model, "tester/untrained")
    assert np.abs(sent - untrained).max() > 1e-3
    assert "model.safetensors" in hub.files("tester/by-trainer")


REMOTE = """
import json, sys
from pathlib import Path

sys.modules["coordformer"] = None  # the package is not installed
import huggingface_hub
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoProcessor, AutoTokenizer

repo_id, revision, structure, output = sys.argv[1:]
names = {"revision": revision, "trust_remote_code": True}
assert AutoConfig.from_pretrained(repo_id, **names).model_type == "coordformer"
processor = AutoProcessor.from_pretrained(repo_id, **names)
batch = processor(structures=structure)
ids = AutoTokenizer.from_pretrained(repo_id, **names)("MKV")["input_ids"]
with torch.no_grad():
    logits = AutoModelForMaskedLM.from_pretrained(repo_id, **names).eval()(**batch).logits
    hidden = AutoModel.from_pretrained(repo_id, **names).eval()(**batch).last_hidden_state
folder = Path(huggingface_hub.snapshot_download(repo_id, revision=revision))
card = Path(huggingface_hub.hf_hub_download(repo_id, "README.md", revision=revision))
torch.save({"ids": ids, "logits": logits, "hidden": hidden}, output)
print(json.dumps({"files": sorted(path.name for path in folder.iterdir()), "card": card.read_text()}))
"""


def test_pushed_folder_loads_without_the_package(run, exported, environment, tmp_path):
    pushed = run(push_as, "hf_write", exported, "by-push", commit_message="First")
    assert pushed["repo_id"] == "tester/by-push" and pushed["revision"] == "main"
    structure = str(STRUCTURES / "1A8O.cif.gz")
    command = [sys.executable, "-c", REMOTE, "tester/by-push", pushed["commit"], structure, str(tmp_path / "out.pt")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["card"] == (exported / "README.md").read_text()
    assert set(found["files"]) == {".gitattributes", *(path.name for path in exported.iterdir())}
    output = torch.load(tmp_path / "out.pt")
    assert output["ids"] == [0, 20, 15, 7, 2]
    model = AutoModelForMaskedLM.from_pretrained(exported)
    batch = CoordformerProcessor()(structures=structure)
    with torch.no_grad():
        torch.testing.assert_close(output["logits"], model(**batch).logits)
        torch.testing.assert_close(output["hidden"], model.base_model(**batch).last_hidden_state)


def test_second_push_sends_only_what_changed(run, hub, folder):
    first = run(push_as, "hf_write", folder, "tester/twice")
    assert len(hub.received) == 2
    assert first["changed"]
    for options in ({}, {"create_pr": True}):  # nothing changed, no commit
        assert run(push_as, "hf_write", folder, "tester/twice", **options) == first | {"changed": False}
    before = dict(hub.files("tester/twice"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Better\n")
    again = run(push_as, "hf_write", folder, "tester/twice", commit_message="A better card")
    after = hub.files("tester/twice")
    assert [path for path in after if after[path] != before.get(path)] == ["README.md"]
    assert len(hub.received) == 2
    commit = hub.repos["tester/twice"]["commits"][again["commit"]]
    assert (commit["parent"], commit["message"]) == (first["commit"], "A better card")
    assert sum(route == "commit" for route, _ in hub.requests) == 2


def test_private(run, hub, exported):
    run(push_as, "hf_write", exported, "tester/private", private=True)
    address = f"{hub.url}/tester/private/resolve/main/config.json"
    assert requests.get(address).status_code == 401
    assert requests.get(address, headers={"Authorization": "Bearer hf_stranger"}).status_code == 404
    assert requests.get(address, headers={"Authorization": "Bearer hf_read"}).status_code == 200
    run(push_as, "hf_write", exported, "tester/public")
    hub.requests.clear()
    with pytest.raises(ValueError, match="tester/public exists and is public"):
        run(push_as, "hf_write", exported, "tester/public", private=True)
    assert not [route for route, _ in hub.requests if route in ("preupload", "commit")]


def test_revision(run, hub, folder):
    main = run(push_as, "hf_write", folder, "tester/branches")
    unite_weights(folder)
    branch = run(push_as, "hf_write", folder, "tester/branches", revision="larger/v2")
    assert branch["revision"] == "larger/v2"
    commits = hub.repos["tester/branches"]
    assert commits["refs"] == {"main": main["commit"], "larger/v2": branch["commit"]}
    assert commits["commits"][branch["commit"]]["parent"] == main["commit"]
    new, old = (run(load_and_predict, "tester/branches", each["commit"]) for each in (branch, main))
    assert np.abs(new - old).max() > 1e-3
    np.testing.assert_array_equal(run(load_and_predict, "tester/branches", "larger/v2"), new)


def test_weights_of_an_earlier_push_are_removed(run, hub, folder, tmp_path):
    in_two = shutil.copytree(folder, tmp_path / "in_two")
    unite_weights(folder)
    for each in (folder, in_two, folder):  # a model.safetensors would be loaded before the two files
        run(push_as, "hf_write", each, "tester/resharded")
        names = {path.name for path in each.iterdir()}
        assert set(hub.files("tester/resharded")) == names | {".gitattributes"}


def test_pull_request(run, hub, folder):
    main = run(push_as, "hf_write", folder, "tester/open")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Theirs\n")
    theirs = run(push_as, "hf_stranger", folder, "tester/open", create_pr=True)
    assert theirs["revision"] == "refs/pr/1" and theirs["url"] == f"{hub.url}/tester/open/discussions/1"
    assert hub.repos["tester/open"]["refs"] == {"main": main["commit"], "refs/pr/1": theirs["commit"]}
    assert run(load_and_predict, "tester/open", "refs/pr/1").shape[-1] == 33


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "repo_id", "options", "message"),
    [
        ("hf_expired", "tester/refused", {}, "(401: Invalid credentials in Authorization header); log in by `hf auth"),
        ("hf_read", "tester/not-there", {}, "(403: You don't have the rights"),
        ("hf_write", "nobody/refused", {}, 'under the namespace "nobody"); push to a namespace of your own'),
        ("hf_write", "tester/refused", {"revision": "refs/pr/9"}, "(404: Invalid rev id: refs/pr/9); check the names"),
        ("hf_write", "tester/refused", {"endpoint": "http://127.0.0.1:9"}, "Connection refused); once that is mended"),
    ],
)
def test_refused(run, exported, token, repo_id, options, message):
    with pytest.raises(OSError) as caught:
        run(push_as, token, exported, repo_id, **options)
    text = str(caught.value)
    assert text.startswith(f"Pushing {exported} to {repo_id} at http://127.0.0.1:") and message in text
    assert "\n" not in text


def test_card_that_the_hub_refuses(run, hub, folder):
    (folder / "README.md").write_text("---\nlicense: none\n---\n")
    with pytest.raises(OSError, match='Invalid metadata in README.md.*"license" must be one of') as caught:
        run(push_as, "hf_write", folder, "tester/card")
    assert "\n" not in str(caught.value) and not hub.received


@pytest.mark.parametrize("route", ["store", "commit", "preupload"])
@pytest.mark.parametrize("failure", [500, "drop"])
def test_failed_upload_can_be_repeated(run, hub, folder, route, failure):
    repo_id = f"tester/{route}-{failure}"
    hub.script[route] = [None] * (route == "store") + [failure] * 10
    with pytest.raises(OSError, match="run the same again; weights that have arrived are not sent a second time"):
        run(push_as, "hf_write", folder, repo_id)
    assert ".gitattributes" in hub.files(repo_id) and "config.json" not in hub.files(repo_id)
    hub.script.clear()
    run(push_as, "hf_write", folder, repo_id)
    assert set(WEIGHTS) < set(hub.files(repo_id))
    assert len(hub.received) == len(set(hub.received)) == 2


@pytest.mark.skipif(
    int(huggingface_hub.__version__.partition(".")[0]) < 2,
    reason="an older huggingface_hub gives up where the server hangs up; pushed again, it goes on",
)
def test_passing_failure_is_tried_again(run, hub, folder):
    hub.script["store"] = [503, "drop"]
    hub.script["preupload"] = [500]
    run(push_as, "hf_write", folder, "tester/passing")
    assert hub.script == {"store": [], "preupload": []}
    assert set(WEIGHTS) < set(hub.files("tester/passing"))


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_upload_can_be_repeated(run, hub, folder, tmp_path, blow):
    repo_id = f"tester/{blow.name.lower()}"
    if blow == signal.SIGINT:  # several files go in threads, which huggingface_hub lets finish first
        unite_weights(folder)
    weights = {path.name for path in folder.glob("*.safetensors")}
    hub.script["store"] = [None] * (len(weights) - 1) + ["hold"]
    process = run(push_forked, folder, repo_id, tmp_path / "errors.txt")
    assert hub.holding.wait(60), (tmp_path / "errors.txt").read_text()
    os.kill(process, blow)
    assert run(os.waitpid, process, 0)[1] != 0
    assert "config.json" not in hub.files(repo_id)
    if blow == signal.SIGINT:
        text = (tmp_path / "errors.txt").read_text()
        assert f"Pushing {folder} to {repo_id} at {hub.url} was interrupted; run the same again" in text
    run(push_as, "hf_write", folder, repo_id)
    assert weights < set(hub.files(repo_id))
    assert len(hub.received) == len(set(hub.received)) == len(weights)


def without(name):
    return lambda folder: (folder / name).unlink()


def with_file(name, content=b"?"):
    return lambda folder: ((folder / name).parent.mkdir(exist_ok=True), (folder / name).write_bytes(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "which is no folder; push a folder that `coordformer export` wrote"),
        (without("config.json"), "lacks config.json"),
        (without("README.md"), "lacks README.md"),
        (without("structure.py"), "lacks structure.py"),
        (without("processing_coordformer.py"), "lacks processing_coordformer.py"),
        (without(WEIGHTS[1]), f"lacks {WEIGHTS[1]}"),
        (without("model.safetensors.index.json"), "lacks model.safetensors"),
        (with_file("config.json", b"{"), "config.json is no JSON"),
        (with_file(WEIGHTS[0], b"8" * 100), f"{WEIGHTS[0]} is damaged"),
        (with_file("README.md", b"---\nlicense: [\n---\n"), "README.md is not valid: while parsing a flow node"),
        (with_file("README.md", b"---\nlicense: mit\nbase_model: no/such/name\n---\n"), "Repo id must be in the form"),
        (lambda folder: change(folder / "config.json", auto_map={}), "has no `auto_map`"),
        (with_file("training_args.bin"), "holds training_args.bin, which is no part"),
        (with_file("checkpoint-1/optimizer.pt"), "holds checkpoint-1/optimizer.pt, which is no part"),
        (with_file("chains.json", bytes(11 * 2**20)), "has 11534336 bytes, more than 10485760"),
    ],
)
def test_folder_that_is_not_to_be_published(folder, spoil, message):
    check_folder(folder)
    spoil(folder)
    with pytest.raises(ValueError) as caught:
        check_folder(folder)
    assert message in str(caught.value) and "`coordformer export`" in str(caught.value)


def test_arguments(exported, monkeypatch):
    with pytest.raises(ValueError, match="`revision` is 'v2', but a pull request goes to main"):
        push(exported, "tester/model", revision="v2", create_pr=True)
    with pytest.raises(ValueError, match="a/b/c"):
        push(exported, "a/b/c")
    monkeypatch.setattr("coordformer.hub.push.get_token", lambda: None)
    with pytest.raises(ValueError, match="There is no token for http.*; log in by `hf auth login`"):
        push(exported, "tester/model")


def test_the_stand_in_refuses_what_the_hub_would(hub):
    """Else a broken upload could pass for a whole one."""
    oid = hashlib.sha256(b"weights").hexdigest()
    token = {"Authorization": "Bearer hf_write"}
    assert requests.post(f"{hub.url}/api/repos/create", json={"name": "strict"}, headers=token).status_code == 200
    assert requests.put(f"{hub.storage_url}/{oid}", data=b"weights").status_code == 403
    assert requests.put(hub.signed_url("PUT", oid), data=b"weight").status_code == 400
    assert requests.put(hub.signed_url("PUT", oid), data=b"weights", headers=token).status_code == 400
    assert not hub.received

    def commit(**value):
        lines = [{"key": "header", "value": {"summary": "test"}}, {"key": "lfsFile", "value": value}]
        body = "\n".join(map(json.dumps, lines))
        return requests.post(f"{hub.url}/api/models/tester/strict/commit/main", data=body, headers=token).status_code

    assert commit(path="model.safetensors", oid=oid, size=7) == 400
    assert requests.put(hub.signed_url("PUT", oid), data=b"weights").status_code == 200
    assert commit(path="model.safetensors", oid=oid, size=6) == 400
    assert commit(path="model.safetensors", oid=oid, size=7) == 200
    assert hub.received == [oid]


def test_the_stand_in_keeps_its_repositories(run, hub, exported, tmp_path):
    pushed = run(push_as, "hf_write", exported, "tester/kept")
    shutil.copytree(hub.folder, tmp_path / "store")
    with Hub(tmp_path / "store") as again:
        answer = requests.get(f"{again.url}/tester/kept/resolve/{pushed['commit']}/{WEIGHTS[0]}")
        assert answer.content == (exported / WEIGHTS[0]).read_bytes()
