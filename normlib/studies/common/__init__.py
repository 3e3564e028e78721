"""What studies of several rooms share: inputs, tuned rates, the look of figures, statements."""
