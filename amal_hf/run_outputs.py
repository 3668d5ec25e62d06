"""What is written beside a student at the end of training: figures and the report page."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amal_hf.loggers import logger_of
from amal_hf.report import write_report
from amal_hf.run_facts import FIGURES
from amal_hf.run_figures import write_figures
from amal_hf.run_record import record_of, texts_of


logger = logger_of(__name__)


def write_outputs(trainer: Any) -> None:
    """Figures, and the page if asked for, by one process. Nothing that fails here may cost a finished training."""
    args = trainer.args
    # The trials of a search would overwrite one another's.
    if not trainer.is_world_process_zero() or trainer.state.is_hyper_param_search:
        return
    if args.write_figures:
        _guarded(lambda: _write_figures(trainer, Path(args.output_dir) / FIGURES), "figures")
    if args.write_report:
        _guarded(lambda: write_page(trainer), "report")


def _guarded(write: Callable[[], Any], what: str) -> None:
    try:
        write()
    except Exception:
        logger.warning("Training is complete, but its %s could not be written:", what, exc_info=True)


def _write_figures(trainer: Any, folder: Path) -> None:
    """Those of this run alone; weights that are fixed make no picture."""
    for picture in folder.rglob("*.png"):
        picture.unlink()
    weighs = not trainer.method.policy.keeps_mixture
    if weighs or trainer.method.batch_policy is not None:
        write_figures(record_of(trainer), folder, weighs)


def write_page(trainer: Any, path: str | None = None, results: Sequence[Mapping[str, Any]] = ()) -> str:
    """The report page of a trainer, by one process; returns its path."""
    target = Path(trainer.args.output_dir) / "report.html" if path is None else Path(path)
    if not trainer.is_world_process_zero():
        return str(target)
    record = record_of(trainer)
    if record.ids:
        record.texts = texts_of(trainer.train_dataset, trainer.processing_class)
    return str(write_report(record, target, results))
