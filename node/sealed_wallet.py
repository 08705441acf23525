"""A patient's wallet file on its way through one call: what signs when this facility does not hold the keys."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, repr=False)
class SealedWallet:
    """A patient's wallet file and the passphrase that opens it, as handed over for one call; never stored."""

    data: bytes
    passphrase: bytes

    def __repr__(self) -> str:
        return f"SealedWallet({len(self.data)} bytes)"
