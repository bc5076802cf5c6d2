"""Saves in the background: the call returns when a snapshot is safe; a thread writes it while the program goes on."""

from pytreeckpt.saving.handles import SaveHandle, finished
from pytreeckpt.saving.saver import BackgroundSaver, save_async

__all__ = ["BackgroundSaver", "SaveHandle", "finished", "save_async"]
