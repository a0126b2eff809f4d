"""Steps that a language model writes: asked over HTTP, paid once, checked before anything is used."""
