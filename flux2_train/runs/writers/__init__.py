"""What a run writes into its folder while it trains, each as a listener of its events."""
