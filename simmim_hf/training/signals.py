"""Signals by which a machine says that it takes a run off: what was learned is saved first."""

import contextlib
import signal
import time
from collections.abc import Iterator

import torch
from transformers import TrainerCallback

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
# A scheduler signals every process of a job, and the launcher among them passes the signal on: that is one signal.
SAME_SIGNAL_SECONDS = 1.0


class Interrupted(Exception):
    """A signal ended the run, which can be resumed."""


class StopAtSignal(TrainerCallback):
    """Saves a checkpoint and ends training after the step in which a signal came; it ends an evaluation at once.

    A signal that reaches one process counts in all. A second one has its ordinary effect, which is the end.
    """

    def __init__(self) -> None:
        self.received = 0
        self.received_at = 0.0

    @property
    def name(self) -> str:
        """Of the signal that came."""
        return signal.Signals(self.received).name

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Notes the signals instead of what they do otherwise. For the main thread."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if not self.received:
            self.received = number
            self.received_at = time.monotonic()
        elif time.monotonic() - self.received_at > SAME_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def came(self, device: torch.device) -> bool:
        """Whether a signal came in any process."""
        if torch.distributed.is_initialized():
            received = torch.tensor(self.received, device=device)
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
            self.received = int(received)
        return self.received != 0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.came(args.device):
            control.should_save = control.should_training_stop = True

    def on_prediction_step(self, args, state, control, **kwargs) -> None:
        if self.came(args.device):
            raise Interrupted
