"""The upload: one commit with all files, which an interrupted one goes on with."""

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # the first is that of its HTTP library

from .. import __version__
from .contents import Contents


def upload(
    contents: Contents,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
) -> str:
    """
    Uploads what [`prepare`] collected, as the user that `hf auth login` or `HF_TOKEN` says. The repository and the
    branch are made if they do not exist. There is one commit, after all large files have been sent, so that nobody
    loads half of a model. Files that the repository has and the folder lacks stay there.

    After an interruption the same call goes on: large files that have been sent are not sent again.

    Args:
        contents ([`Contents`]): What goes, and where.
        private (`bool`, *optional*, defaults to `False`): Whether only its owner sees the repository.
        revision (`str`, *optional*): A branch, or a pull request that is there: `"refs/pr/1"`. `main` by default.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request on a repository that exists, perhaps of somebody else's.
        message (`str`, *optional*): The commit's message.

    Returns:
        `str`: The address of the commit or of the pull request.

    Raises:
        ValueError: Nobody is logged in, the repository is public and shall be private, or options exclude each other.
        ConnectionError: The Hub refused something or cannot be reached.
    """
    if create_pr and revision is not None:
        raise ValueError("A pull request is for the main branch: leave the revision out.")
    if huggingface_hub.get_token() is None:
        raise ValueError("Nobody is logged in on the Hub: run `hf auth login`, or set HF_TOKEN.")
    api = HfApi(library_name="modeling_ofa", library_version=__version__)
    kind, repo_id = contents.repo_type, contents.repo_id
    try:
        if not create_pr:
            repo_id = api.create_repo(repo_id, private=private or None, repo_type=kind, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id, repo_type=kind).private:
            raise ValueError(f"{repo_id} is public. Make it private in its settings on the Hub, then publish again.")
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, file) for name, file in contents.files.items()],
            commit_message=message or f"Upload {contents.kind} with modeling_ofa {__version__}",
            repo_type=kind,
            revision=revision,
            create_pr=create_pr,
        )
    except RepositoryNotFoundError as error:
        raise ConnectionError(f"There is no repository {repo_id}, or it is not shown to you: {error}") from error
    except (HTTPError, RuntimeError) as error:
        reason = error if error.__cause__ is None or not isinstance(error, RuntimeError) else error.__cause__
        raise ConnectionError(
            f"The upload to {repo_id} was interrupted ({' '.join(str(reason).split())}). What was sent stays there, "
            "and the same command goes on from it."
        ) from error
    return commit.pr_url or commit.commit_url


__all__ = ["upload"]
