"""Runs on a cluster. What asks the API raises BackendError where it does not answer or refuses."""
