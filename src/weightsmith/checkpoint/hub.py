"""Models of the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

from pathlib import Path

from weightsmith.errors import ResourceError, shown

PATTERNS = (
    "*.safetensors",
    "*.bin",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
)


def fetch(repo_id: str, revision: str | None = None) -> tuple[Path, str]:
    """Return the cached snapshot folder of a model, downloaded first where needed, and its commit.

    With HF_HUB_OFFLINE=1 only the cache is asked.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag or commit; the main branch where None.

    Raises:
        ResourceError: huggingface_hub is not installed, or the model is neither cached nor reachable.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ResourceError(
            f"model '{shown(repo_id)}' needs the hub, and huggingface_hub is not installed",
            do="Install it: pip install 'weightsmith[hf]'",
        ) from error
    name = shown(repo_id) + (f"@{shown(revision)}" if revision else "")
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(PATTERNS)))
    except Exception as error:
        # Besides OSError and ValueError come those of whichever network library is below. The first line of
        # the text says enough, and holds no token.
        reason = shown(str(error).strip().partition("\n")[0]) or type(error).__name__
        raise ResourceError(
            f"model '{name}' cannot be had from the hub: {type(error).__name__}: {reason}",
            do="Check the name, the network and your access, or name a local folder",
        ) from error
    return folder, folder.name
