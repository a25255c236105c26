"""Images: the contract, exact resampling, foreground, evidence."""
