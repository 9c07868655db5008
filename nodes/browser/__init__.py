"""What passes between the nodes and the browser: texts and pictures, checks before a run, and the routes."""
