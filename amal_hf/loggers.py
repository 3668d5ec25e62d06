"""Loggers whose warnings are said by one process, as all that train together would say the same.

That of Accelerate refuses to speak before its processes know of one another; data are read before that.
"""

import logging
import os

from amal_hf.processes import process_rank


def logger_of(module: str) -> logging.Logger:
    """The logger of a module of this package; processes but the first say errors alone.

    Args:
        module: its `__name__`.
    """
    logger = logging.getLogger(module)
    logger.addFilter(_is_said_here)
    return logger


def _is_said_here(record: logging.LogRecord) -> bool:
    # Before they know of one another, processes know their number from whoever launched them.
    return record.levelno >= logging.ERROR or (process_rank() == 0 and os.environ.get("RANK", "0") == "0")
