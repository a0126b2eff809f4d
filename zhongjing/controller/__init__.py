"""The controller: drives the TrainingPipelines of one namespace on the Ray cluster of its release."""
