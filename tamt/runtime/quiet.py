"""Transformers kept quiet while a command runs, as commands report in their own words what matters."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn warnings and progress bars of transformers and its hub off inside, if it is loaded; restore them after."""
    if "transformers" not in sys.modules:
        yield
        return
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    hub_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # else it tells of every attempt
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()
            if not hub_bars:
                disable_progress_bars()
