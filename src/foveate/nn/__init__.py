"""Building blocks of methods: sampling, replay, attention, position codes. No disk, no clock."""
