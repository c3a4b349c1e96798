"""What ships with the package: the built-in base model, how it was made, and the learning rates of the demo."""
