"""Shows what was learned: previews, losses at fixed noise, verdicts on images, comparisons."""
