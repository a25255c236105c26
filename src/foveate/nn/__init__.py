"""Layers and estimators that methods are built of: sampling, replay, attention, position codes.

The modules are pure: no disk, no clock.
"""
