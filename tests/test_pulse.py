"""service.pulse: an event loop that turns is shown on the board, and so is a call that does not end."""

from pathlib import Path

from service.board import STUCK, UNBORN, Board, Pulses
from service.pulse import BEATS_A_SECOND, PATIENCE_S, Pulse


def test_every_beat_is_seen(tmp_path: Path) -> None:
    """Whoever supervises sees a change with each, and a successor's row starts anew."""
    pulses, board = Pulses(tmp_path / "board"), Board(tmp_path / "board", 3)
    assert pulses.of(3) == UNBORN
    seen = []
    for _ in range(3):
        Pulse(board).beat()
        seen.append(pulses.of(3))
    assert len({UNBORN, STUCK, *seen}) == 5
    Board(tmp_path / "board", 3)
    assert pulses.of(3) == UNBORN


def test_a_call_that_takes_too_long_is_told(tmp_path: Path) -> None:
    """By the beats that pass meanwhile; once it is told it stays so."""
    pulses, pulse = Pulses(tmp_path / "board"), Pulse(Board(tmp_path / "board", 1))
    with pulse.watching("a call", may_take_s=1.0):
        for _ in range(round((PATIENCE_S + 1.0) * BEATS_A_SECOND)):
            pulse.beat()
        assert pulses.of(1) != STUCK
        pulse.beat()
        assert pulses.of(1) == STUCK
    pulse.beat()
    assert pulses.of(1) == STUCK


def test_calls_that_end_are_forgotten(tmp_path: Path) -> None:
    """However many there are, and also where they fail."""
    pulses, pulse = Pulses(tmp_path / "board"), Pulse(Board(tmp_path / "board", 1))
    for _ in range(200):
        try:
            with pulse.watching("a call"):
                pulse.beat()
                raise ValueError
        except ValueError:
            pass
    assert pulses.of(1) != STUCK
