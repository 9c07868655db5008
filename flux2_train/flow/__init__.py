"""Rectified flow as pure functions on tensors. Imports torch and nothing of ours."""
