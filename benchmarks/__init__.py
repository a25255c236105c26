"""Benchmarks of foveate: synthetic tasks of the field, studies, and the parts that they need.

A folder of plug-ins (``--plugins benchmarks``) and of scripts; not part of what is installed.
"""
