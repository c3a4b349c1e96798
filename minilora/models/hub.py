"""Models and adapters by name on the Hugging Face Hub: ORG/NAME or NAME, with a branch, tag or commit after @.

`huggingface_hub` fetches them, with its cache, token, offline switch (HF_HUB_OFFLINE) and progress bar.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from ..spelling import did_you_mean

NAME = re.compile(r"(?:https://huggingface\.co/)?((?:\w[\w.-]*/)?\w[\w.-]*)(?:@((?!.*\.\.)\w[\w./+-]*))?", re.ASCII)
FILE_ENDINGS = (".gguf", ".json", ".safetensors")  # a name with such an ending is a path
COMMIT = re.compile("[0-9a-f]{40}")
PICKLE = re.compile(r"(pytorch_model|adapter_model|model|consolidated)\b.*\.(bin|pt|pth|ckpt)")  # weights
PACKAGE = "huggingface_hub>=1.31"
MAX_LISTED = 12  # files of a repository that an error lists


class HubName(NamedTuple):
    name: str  # "org/name", or "gpt2"
    revision: str | None = None  # a branch, a tag or a commit

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def name_on_hub(source: str | Path) -> HubName | None:
    """`source` as a name on the Hub; None for an existing path, a Path, and what cannot be a name.

    A mistyped folder, such as runs/ntoes, counts as a name.
    """
    match = NAME.fullmatch(source) if isinstance(source, str) and not Path(source).exists() else None
    return HubName(*match.groups()) if match and not match[1].endswith(FILE_ENDINGS) else None


def fetch(hub: HubName, required: Collection[str], optional: Collection[str] = (), known: Collection[str] = ()) -> Path:
    """The folder in the Hub's cache with the files `required`, and those of `optional` that the repository has.

    The folder is named after the commit. `known` are other names, for an error to suggest. Raises ImportError without
    the package, FileNotFoundError for a name, revision or file that does not exist (without a network: that is not in
    the cache), PermissionError for a gated repository, ValueError for weights that exist only as a pickle,
    ConnectionError for other failures.
    """
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.utils import tqdm
    except ImportError:
        raise ImportError(
            f"{did_you_mean(hub.name, known)}no folder or file {hub.name!r}; a name on the Hub takes a package: "
            f"pip install '{PACKAGE}'"
        ) from None

    class Bar(tqdm):  # only on a terminal, and removed when done
        def __init__(self, *values: Any, **options: Any) -> None:
            super().__init__(*values, **options | {"disable": None, "leave": False})

    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # no warnings above the one line of an error
    try:
        found = snapshot_download(
            hub.name,
            revision=hub.revision,
            allow_patterns=[*required, *optional],
            local_files_only=constants.HF_HUB_OFFLINE or is_down(hub),
            tqdm_class=Bar,
        )
    except Exception as error:  # the client has no class for all that it raises
        if isinstance(error, OSError) and error.errno:  # of the disk
            raise
        raise explained(error, hub, known) from None
    finally:
        log.setLevel(level)
    folder = Path(found)
    for file in required:
        if not (folder / file).is_file():
            raise missing_file(hub, folder, file)
    return folder


def is_down(hub: HubName) -> bool:
    """Whether the Hub does not answer, for a commit whose files are not listed in the cache; False for others.

    For such a commit the client would try to list the files for half a minute. It tries to resolve a branch only once.
    """
    from huggingface_hub import HfApi, errors, get_cached_repo_tree

    if not COMMIT.fullmatch(hub.revision or ""):
        return False
    try:
        get_cached_repo_tree(hub.name, revision=hub.revision)
    except errors.CachedRepoTreeNotFoundError:
        try:
            HfApi().model_info(hub.name, revision=hub.revision)
        except errors.HfHubHTTPError as error:
            return error.response.status_code >= 500
        except Exception:
            return True
    return False


def explained(error: Exception, hub: HubName, known: Collection[str]) -> OSError:
    """An error of huggingface_hub as one line that says what to do."""
    from huggingface_hub import constants, errors

    others = f", none of {', '.join(known)}" if known else ""
    nowhere = f"{did_you_mean(hub.name, known)}no folder or file {hub.name!r}{others}"
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{hub.name}"
        return PermissionError(f"{hub.name} is gated: accept its conditions at {page}, then log in with: hf auth login")
    if isinstance(error, errors.LocalEntryNotFoundError):
        revision = f" --revision {hub.revision}" if hub.revision else ""
        command = f'hf download {hub.name}{revision} --include "*.json" --include "*.safetensors" --include "*.jinja"'
        why = "the Hub cannot be reached" + (f" ({one_line(error.__cause__)})" if error.__cause__ else "")
        if constants.HF_HUB_OFFLINE:
            why = "HF_HUB_OFFLINE is set: unset it, or"
        return FileNotFoundError(
            f"{nowhere}, and the Hub's cache lacks it or a part of it; {why}, with a network, run: {command}"
        )
    refused = isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401
    if refused or isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return FileNotFoundError(
            f"{nowhere}, and no such name on the Hub, or it is private and the token does not open it: hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{hub.name} on the Hub has no branch, tag or commit {hub.revision or 'main'!r}")
    return ConnectionError(f"{hub.name} cannot be fetched from the Hub: {one_line(error)}")


def missing_file(hub: HubName, folder: Path, file: str) -> Exception:
    """The error for a `file` that is not in the `folder` that fetch() returned: it lists what the repository holds."""
    from huggingface_hub import HfApi, errors

    try:
        found = HfApi().model_info(hub.name, revision=folder.name).siblings or []
        there = [sibling.rfilename for sibling in found]
    except Exception as error:  # without a network: the files in the cache
        there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        if not any(map(PICKLE.fullmatch, there)):
            return explained(errors.LocalEntryNotFoundError(one_line(error)), hub, ())
    pickles = [name for name in there if PICKLE.fullmatch(name)]
    if file.endswith(".safetensors") and pickles:
        return pickle_error(
            f"{hub.name}: {pickles[0]}", file, f", or take a revision that holds one, as {hub.name}@refs/pr/1"
        )
    listed = ", ".join(there[:MAX_LISTED]) + ", ..." * (len(there) > MAX_LISTED)
    return FileNotFoundError(f"{hub.name} on the Hub holds no {file}, only {listed or 'nothing'}")


def pickle_error(what: str | Path, instead: str, otherwise: str = "") -> ValueError:
    """The error for weights that exist only as a pickle, `what`; `instead` is the file that would be read."""
    library = "PEFT" if instead.startswith("adapter") else "transformers"
    return ValueError(
        f"{what} is a pickle, which can run code and is never read: load it in {library} and save it again, as "
        f"{instead}{otherwise}"
    )


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
