"""What a run takes: arithmetic that says it beforehand (the planner), and the streaming of what does not fit."""
