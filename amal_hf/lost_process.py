"""What to do where another process of the run has ended, or does not answer."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from amal_hf.processes import process_count, process_rank


@contextmanager
def lost_process_advice() -> Iterator[None]:
    """Within the block an error of a message between processes gets a note of what has happened, and how to go on.

    The error itself stays as it was, so that launchers that start lost processes again know it.
    """
    try:
        yield
    except RuntimeError as error:
        if process_count() > 1 and _is_unanswered(error):
            error.add_note(
                f"amal_hf: process {process_rank()} got no answer, because another of the {process_count()} processes "
                "has ended or waits elsewhere; its own output says why. Nothing that was saved is changed. Start all "
                "of them again with train(resume_from_checkpoint=True), on any number of processes. Where a process "
                "was only slow, raise ddp_timeout."
            )
        raise


def _is_unanswered(error: RuntimeError) -> bool:
    # Gloo has no class of its own.
    words = ("connection closed by peer", "connection reset", "broken pipe", "timed out", "timeout")
    return isinstance(error, DistError) or any(part in str(error).lower() for part in words)
