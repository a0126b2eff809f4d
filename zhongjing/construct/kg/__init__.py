"""The knowledge graph: what it holds, where its names occur, and what a dialogue says against it."""
