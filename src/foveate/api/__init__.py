"""What Python users call: commands as functions, and a classifier in the manner of scikit-learn."""
