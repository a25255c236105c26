"""The Python interface: commands as functions, and a classifier with scikit-learn's interface."""
