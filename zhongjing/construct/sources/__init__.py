"""Sources built from what is no text or dialogue yet: graphs, health records, published tasks, a profile."""
