"""What foveate is measured by: tasks of the field, studies, and the parts that only these need.

A folder of plug-ins (``--plugins benchmarks``) and of scripts; not part of what is installed.
"""
