"""What an adversary tries to bring an erased concept back, each attack by name; :mod:`spare_core.attacks.attack` runs
them against the base, a plain erasure and adapters."""
