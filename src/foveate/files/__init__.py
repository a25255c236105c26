"""Write and read files safely: renamed when complete, locked, journalled, checked."""
