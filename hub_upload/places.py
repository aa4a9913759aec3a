"""Where a model can lie: a directory or the Hub. Loads nothing until it is asked."""

import os


def check_place(place: str) -> None:
    """Raises ValueError if `place` can be neither the directory nor the Hub id of a model."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if not os.path.isdir(place):
            validate_repo_id(place)
    except HFValidationError as error:
        raise ValueError(f"{place!r} is neither a directory here nor a Hub id") from error
