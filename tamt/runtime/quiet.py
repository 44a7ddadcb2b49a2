"""Transformers kept quiet while a command runs, as commands report in their own words what matters."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tamt.runtime.console import say

HUB_REQUESTS = "huggingface_hub.utils._http"
"""The logger that reports each attempt to reach the hub."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn warnings and progress bars of transformers and its hub off inside, if it is loaded; restore them after.

    That the hub does not answer is reported once, as the hub's library tries for a minute.
    """
    if "transformers" not in sys.modules:
        yield
        return
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    hub_bars = not are_progress_bars_disabled()
    requests = logging.getLogger(HUB_REQUESTS)
    requests_level, retries = requests.level, _Retries()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    requests.setLevel(logging.WARNING)
    requests.addFilter(retries)
    try:
        yield
    finally:
        requests.removeFilter(retries)
        requests.setLevel(requests_level)
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
            if not hub_bars:
                disable_progress_bars()


class _Retries(logging.Filter):
    """Lets no record through, and reports the first one about another attempt."""

    def __init__(self) -> None:
        super().__init__()
        self._reported = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._reported and "Retry" in record.getMessage():
            self._reported = True
            say("the Hugging Face Hub does not answer; trying for a minute (HF_HUB_OFFLINE=1 takes what is cached)")
        return False
