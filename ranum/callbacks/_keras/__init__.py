"""The guard in Keras' `fit`: callback, guarded step, and what each backend does for it."""
