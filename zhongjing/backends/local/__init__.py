"""The local backend: a supervisor that owns a Ray and an object store, and the session that talks to it."""
