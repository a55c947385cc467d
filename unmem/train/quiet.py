"""Libraries that say nothing but errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet(*, texts: bool) -> Iterator[None]:
    """No warnings and no bars of diffusers; nor of transformers, where ``texts`` need it."""
    from diffusers.utils import logging as of_diffusers

    loggers: list[Any] = [of_diffusers]
    if texts:
        from transformers.utils import logging as of_transformers

        loggers.append(of_transformers)
    before = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, verbosity in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
