"""Where a model can lie: a directory or the Hub. Loads nothing until it is asked."""

import os
import threading

HUB_TIMEOUT = 8  # seconds for the Hub to answer anything


def check_place(place: str) -> None:
    """Raises ValueError if `place` can be neither the directory nor the Hub id of a model."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if not os.path.isdir(place):
            validate_repo_id(place)
    except HFValidationError as error:
        raise ValueError(f"{place!r} is neither a directory here nor a Hub id") from error


def check_hub(repository: str, file: str = "config.json") -> None:
    """Raises OSError unless the Hub answers soon, is not to be asked (HF_HUB_OFFLINE), or need not be.

    Else every file of a model would be waited for in vain, several times. What was downloaded before, `file` first,
    is used when the Hub cannot be reached, and nothing else is asked of it then.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return
    failures: list[Exception | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
            failures.append(None)
        except Exception as error:  # of one of several libraries: it is raised below
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # no client's timeout ends the search for an address
    thread.start()
    thread.join(HUB_TIMEOUT)
    if failures == [None]:
        return
    if isinstance(try_to_load_from_cache(repository, file), str):
        constants.HF_HUB_OFFLINE = True
        return
    reason = failures[0] if failures else f"no answer in {HUB_TIMEOUT} s"
    raise OSError(
        f"the Hub at {constants.ENDPOINT} cannot be reached ({reason}); give a directory, or try again later"
    )
