"""The only room that touches disk: reading, writing and publishing checkpoints."""
