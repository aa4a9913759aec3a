"""How the Hub is called: again where that helps, and in the end with an error that says in one line what happened.

Knows HTTP and the Hub's client; knows no repository.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

RETRY_WAITS = (1.0, 4.0)  # seconds before the second and the third attempt


def retry(function: Callable, *args, **kwargs):
    """Calls the Hub, again after a wait when it answers 5xx or the connection breaks."""
    for wait in RETRY_WAITS:
        try:
            return function(*args, **kwargs)
        except (HTTPError, ConnectionError) as error:  # the latter from the Xet client
            final = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
            if final or isinstance(error, OfflineModeIsEnabled):
                raise
        time.sleep(wait)
    return function(*args, **kwargs)


@contextmanager
def clear_errors(doing: str) -> Generator[None]:
    """Turns what the Hub's client raises into one line that says what happened and what helps."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConnectionError(f"{doing}: offline mode is on; unset HF_HUB_OFFLINE to publish") from error
    except HTTPError as error:
        raise explained(doing, error) from error
    except (RuntimeError, OSError) as error:  # a large file: the answer of the Hub is the cause, or Xet gave up
        if isinstance(error.__cause__, HTTPError):
            raise explained(doing, error.__cause__) from error
        raise ConnectionError(
            f"{doing}: the upload broke off ({error}); nothing was published, run it again"
        ) from error


def explained(doing: str, error: HTTPError) -> OSError:
    """The error of the Hub's client as an OSError of one line."""
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(f"{doing}: the Hub cannot be reached ({error}); check the network and run it again")
    status, said = error.response.status_code, error.server_message or error.response.reason_phrase
    if status == 401:
        return PermissionError(f"{doing}: the Hub does not accept the token; run `hf auth login`, or correct HF_TOKEN")
    if status in (402, 403, 413):
        return PermissionError(f"{doing}: the Hub refused ({said}); check the token's rights and the storage quota")
    if status == 412:
        return ConnectionError(f"{doing}: somebody else committed meanwhile; nothing was published, run it again")
    return ConnectionError(f"{doing}: the Hub answered {status} ({said}); nothing was published, run it again later")
