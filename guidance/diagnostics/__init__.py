"""What ``ladle check --deep`` measures on a family's own models: whether its values may be merged, and whether what
guides fits what is guided."""
