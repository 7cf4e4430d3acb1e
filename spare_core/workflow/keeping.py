"""What is kept for an order as long as a task works on it.

An order may have been made for requests that somebody else could take meanwhile. Whoever makes such orders adds here
what holds them; tasks enter all of it and need not know what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from spare_core.workflow.order import Order

KEEPERS: Final[list[Callable[[Order], AbstractContextManager[None]]]] = []


@contextmanager
def keeping(order: Order) -> Iterator[None]:
    """Keep what ``order`` needs while the body runs."""
    with ExitStack() as stack:
        for keeper in KEEPERS:
            stack.enter_context(keeper(order))
        yield
