"""The analysis wing: activations.h5 -> numbers. It knows arrays and never imports torch."""
