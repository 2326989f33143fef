"""A model folder to the Hugging Face Hub: `coordformer push`."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token, utils
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_imports

from .card import check_card

logger = logging.getLogger(__name__)

# What a published model consists of: weights, settings, code, the card, its figures and numbers. Above all no pickles,
# which can run code where they are loaded.
PUBLISHED = (".csv", ".json", ".md", ".png", ".py", ".safetensors", ".svg", ".txt", "LICENSE", ".gitattributes")
MAX_BYTES = 10 * 2**20  # of a file other than weights, which the Hub takes as part of a commit

_LOG_IN = "log in by `hf auth login`, or set HF_TOKEN to a token that may write"
_AGAIN = "run the same again; weights that have arrived are not sent a second time"
_FIXES = {
    401: _LOG_IN,
    403: "push to a namespace of your own, take a token that may write to this one, or set create_pr",
    404: "check the names of the repository and the revision",
}


def check_folder(folder: str | Path) -> None:
    """Whether a folder holds a whole model with its card and its code, and nothing else.

    Raises:
        ValueError: a file is missing, damaged, or none that is published; the message names it.
    """
    folder = Path(folder)
    fix = "push a folder that `coordformer export` wrote"
    if not folder.is_dir():
        raise ValueError(f"`folder` is {folder}, which is no folder; {fix}.")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if strangers := [name for name in files if not name.endswith(PUBLISHED)]:
        raise ValueError(f"{folder} holds {', '.join(strangers[:3])}, which is no part of a published model; {fix}.")
    for name, path in files.items():
        if not name.endswith(".safetensors") and path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, more than {MAX_BYTES} outside weights; {fix}.")

    settings = {}
    for name in ("config.json", "processor_config.json", "model.safetensors.index.json"):
        try:
            settings[name] = json.loads(files[name].read_text(encoding="utf-8")) if name in files else {}
        except ValueError as error:
            raise ValueError(f"{folder / name} is no JSON ({error}); {fix}.") from error
    weights = settings["model.safetensors.index.json"].get("weight_map", {"": "model.safetensors"}).values()
    classes = [settings[name].get("auto_map", {}) for name in ("config.json", "processor_config.json")]
    code = {f"{path.partition('.')[0]}.py" for names in classes for path in names.values()}
    scripts = [path for name, path in files.items() if name.endswith(".py")]
    code |= {f"{module}.py" for path in scripts for module in get_relative_imports(path)}
    for name in ("config.json", "README.md", *sorted(set(weights)), *sorted(code)):
        if name not in files:
            raise ValueError(f"{folder} lacks {name}; {fix}.")
    if "AutoConfig" not in classes[0]:
        raise ValueError(f"{folder / 'config.json'} has no `auto_map`, so it needs the package to load; {fix}.")
    for name in sorted(set(weights)):
        try:
            with safe_open(files[name], "np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{files[name]} is damaged ({error}); {fix}.") from error
    try:
        check_card(files["README.md"])
    except ValueError as error:
        raise ValueError(f"{error} Mend it, or {fix}.") from error


@contextlib.contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Whatever goes wrong with the Hub as an OSError of one line: what, why, and what to do."""
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("%s was interrupted; %s.", what, _AGAIN)
        raise
    except Exception as error:  # the HTTP client, another one in other versions, raises errors of its own
        # What stopped an upload comes wrapped.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        reason, fix = str(cause) or type(cause).__name__, f"once that is mended, {_AGAIN}"
        if "xet" in reason.lower():
            fix = f"set HF_HUB_DISABLE_XET=1, and {_AGAIN}"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            reason, fix = f"{status}: {cause.server_message or reason}", _FIXES.get(status, fix)
        raise OSError(f"{what} failed ({' '.join(reason.split())}); {fix}.") from error


def push(
    folder: str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = False,
    commit_message: str | None = None,
    create_pr: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Upload a folder that `coordformer export` wrote to a model repository, which is made if need be.

    Files that the repository holds already are not sent; others of the same name are replaced, and of what else lies
    there only weights of the model are removed.
    `huggingface_hub` does the work, over Xet where `hf_xet` is installed, unless HF_HUB_DISABLE_XET=1.

    Args:
        folder: see `check_folder`.
        repo_id: `name`, in your own namespace, or `namespace/name`.
        revision: branch to commit to, made from `main` if need be; the default is `main`.
        private: a repository that is made is private.
        commit_message: first line of the commit's message.
        create_pr: open a pull request against `main` instead of a commit on it.
        progress: show progress bars.

    Returns:
        `repo_id`, `revision` (a branch, or `refs/pr/1`), `commit` (its hash, which pins the model in
        `from_pretrained(repo_id, revision=commit)`), whether that `changed` anything, and `url` of the repository or
        pull request.

    Raises:
        ValueError: the folder is not to be published (see `check_folder`), no one is logged in, or arguments contradict
            each other or what the repository is.
        OSError: the Hub cannot be reached, refuses, or the transfer broke off; called again, it is taken up.
    """
    check_folder(folder)
    utils.validate_repo_id(repo_id)
    if create_pr and revision is not None:
        raise ValueError(f"`revision` is {revision!r}, but a pull request goes to main; leave out one or `create_pr`.")
    api = HfApi()
    if get_token() is None:
        raise ValueError(f"There is no token for {api.endpoint}; {_LOG_IN}.")
    what = f"Pushing {folder} to {repo_id} at {api.endpoint}"
    with contextlib.ExitStack() as stack:
        if not progress and not utils.are_progress_bars_disabled():
            utils.disable_progress_bars()
            stack.callback(utils.enable_progress_bars)
        with _explaining(what):
            # Not `private=False`: an organization may have decided that its repositories are private.
            repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
            public = private and not api.model_info(repo_id).private
        if public:
            raise ValueError(f"`private` is set, but {repo_id} exists and is public; change that in its settings.")
        with _explaining(what):
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            before = api.model_info(repo_id, revision=revision).sha
            # Weights in another number of files would stay, and be loaded in place of these.
            stale = ["model*.safetensors", "model.safetensors.index.json"]
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message,
                create_pr=create_pr, delete_patterns=stale,
            )  # fmt: skip
    result = {"repo_id": repo_id, "revision": commit.pr_revision or revision or "main", "commit": commit.oid}
    return result | {"changed": commit.oid != before, "url": commit.pr_url or str(commit.repo_url)}


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as a short text."""
    if summary["changed"]:
        return f"{summary['url']} ({summary['revision']}, commit {summary['commit']})"
    return f"{summary['url']} holds all of it already; nothing was sent"
