"""The steps of a training as values: what is known of each, which ones to keep, when to save, and what to remove.

Nothing here opens a file or reads a clock.
"""
