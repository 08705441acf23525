"""What the task that repairs damaged blocks (`block_repair`) hears from others, and what they hear from it."""

import trio


class DamageNotice:
    """`tell`: somebody has met damage, and it has not been looked into since. `whole`: no block has been missing since the start."""

    def __init__(self, *, is_whole: bool = True) -> None:
        self._told = trio.Event()
        self.whole = trio.Event()
        if is_whole:
            self.whole.set()

    def tell(self) -> None:
        """Say that damage was met. May be said any number of times."""
        self._told.set()

    async def wait(self) -> None:
        """Wait until it is said, and take it back: what is said from now on is news."""
        await self._told.wait()
        self._told = trio.Event()
