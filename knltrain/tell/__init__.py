"""What a run tells: its log, and all that is drawn from it."""
