"""The graph's model during training: borrowed, with frozen layers, asked for its velocity, its weights streamed."""
