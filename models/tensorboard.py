"""A log that TensorBoard shows, written by tensorboardX, which needs none of TensorBoard itself."""

from pathlib import Path

from models.formats import DataError
from models.progress import Progress


class Log:
    """Of one run, in a folder. step: batches trained on so far; of later ones nothing that was written before is shown.

    Raises DataError where tensorboardX is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise DataError(
                "--tensorboard needs tensorboardX: pip install tensorboardX, or leave the option out"
            ) from error
        # Files are named by the second, and a killed run may well be resumed within it.
        self._writer = SummaryWriter(str(folder), purge_step=step, filename_suffix=f".{step}")

    def batch(self, step: int, loss: float, rates: list[float]) -> None:
        """The loss of a batch and the learning rate of each group of parameters, by which it was trained on."""
        self._writer.add_scalar("train/loss", loss, step)
        for group, rate in enumerate(rates):
            self._writer.add_scalar(f"rate/{group}", rate, step)

    def epoch(self, step: int, progress: Progress) -> None:
        """The figures of the pass that ended with this batch."""
        for name, value in progress.history[-1].items():
            self._writer.add_scalar(f"epoch/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
