"""Label Studio, where people rank answers: its process, its REST API, the page."""
