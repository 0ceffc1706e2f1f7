"""The 57 cases that were written in TensorFlow, as functions of its operators."""
