"""The Kubernetes backend: TrainingPipelines of an API server, and the Ray that their stages run on."""
