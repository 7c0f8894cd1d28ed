"""The version, and the checkpoint format's version. Nothing else: `setup.cfg` reads this file without torch."""

__version__ = "0.1.0"

#: The Lightning version whose checkpoint format we write (Lightning refuses to resume from an odd one).
CHECKPOINT_FORMAT = "2.6.6"
