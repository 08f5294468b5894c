"""Commands around training: the demo, drills, pictures of data, other programs' files."""
