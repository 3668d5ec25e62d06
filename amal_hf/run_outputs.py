"""What is written beside a student at the end of training: figures and the report page."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amal_hf.policies.fixed_weights import FixedWeights
from amal_hf.report import write_report
from amal_hf.run_figures import write_figures
from amal_hf.run_record import record_of, texts_of


logger = logging.getLogger(__name__)


def write_outputs(trainer: Any) -> None:
    """Figures, and the page if asked for, by one process. Nothing that fails here may cost a finished training."""
    args = trainer.args
    # Weights that are fixed make no picture, and the trials of a search would overwrite one another's.
    figures = args.write_figures and not isinstance(trainer.method.policy, FixedWeights)
    if not trainer.is_world_process_zero() or trainer.state.is_hyper_param_search:
        return
    try:
        if figures:
            write_figures(record_of(trainer), Path(args.output_dir) / "figures")
        if args.write_report:
            write_page(trainer)
    except Exception:
        logger.warning("Training is complete, but its figures or report could not be written:", exc_info=True)


def write_page(trainer: Any, path: str | None = None, results: Sequence[Mapping[str, Any]] = ()) -> str:
    """The report page of a trainer; returns its path."""
    target = Path(trainer.args.output_dir) / "report.html" if path is None else Path(path)
    record = record_of(trainer)
    record.texts = texts_of(trainer.train_dataset, trainer.processing_class)
    return str(write_report(record, target, results))
